"""Gathers the pages of the site and builds it: `make docs`, or `python -m docs.website`.

The source of the site is a copy of what the pages link, in the places that they have here, so that links lead where
they lead on GitHub; beside it, pages of attacks, recipes, suites, boards and the API, from the code. The built site
needs no network and no server. At the end every link and anchor of it is followed.
"""

import html.parser
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urldefrag

import click

import bench
import bench.interfaces
import bench.results
from bench.cli.list_ import entries_of
from bench.errors import BenchError
from bench.leaderboard.paper.boards import COMMITTED
from bench.leaderboard.paper.defense_pages import hyperparameters
from bench.leaderboard.paper.prose import method_of, prose
from bench.system.files import write_text
from docs.build import ROOT, recipe_table, suite_tables

BUILT = ROOT / "build" / "site"
"""Holds the source of the site, its configuration and, in `site`, the pages."""
PAPER = "leaderboard/boards/paper.md"
WORKER = ROOT / "docs" / "iframe-worker.js"
"""Lets the search work in pages that are opened from disk; the generator would load one from the network instead."""
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
GUIDES = (
    "your-model",
    "datasets",
    "python",
    "robustbench",
    "commands",
    "open-board",
    "costs",
    "scaling",
    "faults",
    "faq",
)
PROJECT = {
    "Protocol": "docs/protocol.md",
    "Guarantees": "docs/guarantees.md",
    "How the paper was read": "docs/readings.md",
    "The result file": "bench/results/FORMAT.md",
    "Architecture": "ARCHITECTURE.md",
    "Contributing": "CONTRIBUTING.md",
    "Security": "SECURITY.md",
    "Changelog": "CHANGELOG.md",
}


def offered(module: ModuleType) -> list[str]:
    """The names that a module which only imports offers."""
    return [name for name, value in vars(module).items() if name[0] != "_" and not isinstance(value, ModuleType)]


API: Mapping[str, Mapping[str, str]] = {
    "bench": {
        name: "bench.leaderboard._Callable.__call__" if name == "leaderboard" else f"bench.face.{name}"
        for name in bench.__all__
    },
    "bench.interfaces": {name: f"bench.interfaces.{name}" for name in offered(bench.interfaces)},
    "bench.results": {name: f"bench.results.{name}" for name in offered(bench.results)},
}
"""Every public name of the modules that are for others, and where it is written."""


def sources() -> dict[str, str]:
    """The text of every page of the site, by its place."""
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in _written()}
    texts |= {place: _board(name) for name, place in _boards().items()}
    texts["attacks.md"] = _attacks()
    texts["recipes.md"] = (
        f"# Recipes\n\nWhat a training is made of, on CIFAR-10, where recipes differ.\n\n{recipe_table()}\n"
    )
    texts["suites.md"] = f"# Suites\n\nThe attacks of every suite, as they are on CIFAR.\n\n{suite_tables()}\n"
    texts |= {f"api/{module}.md": _api(module) for module in API}
    return {place: _relinked(place, text) for place, text in texts.items()}


def _written() -> list[str]:
    """Pages of this repository, by their place in it."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / PAPER, ROOT / "bench/results/FORMAT.md"]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def _boards() -> dict[str, str]:
    """The place of the page of every board, by name: the one that holds its own page, which is `NAME.html`."""
    return {path.stem: f"leaderboard/boards/{path.stem}.board.md" for path in sorted(COMMITTED.glob("*.html"))}


def navigation() -> list[Any]:
    """Titles and places of pages, in the order of the site."""
    defenses = {name: f"docs/defenses/{name}.md" for name in entries_of("defenses")}
    listed: dict[str, Any] = {
        "Start": "README.md",
        "Guides": [f"docs/{name}.md" for name in GUIDES],
        "Defenses": ["docs/defenses/README.md", *_named(defenses)],
        "Attacks": "attacks.md",
        "Recipes": "recipes.md",
        "Suites": "suites.md",
        "Checks": ["docs/trust.md", "docs/terms.md", "docs/planted.md"],
        "Boards": ["docs/boards.md", *_named(_boards()), "docs/figures/README.md", PAPER],
        "API": _named({module: f"api/{module}.md" for module in API}),
        "Project": _named(PROJECT),
    }
    return _named(listed)


def _named(pages: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{title: place} for title, place in pages.items()]


def configuration() -> dict[str, Any]:
    """What the generator is told; JSON is YAML."""
    options = {
        "docstring_style": "google",
        "heading_level": 2,
        "members_order": "source",
        "separate_signature": True,
        "show_root_heading": True,
        "show_source": False,
        "signature_crossrefs": True,
    }
    return {
        "site_name": "advbench",
        "site_description": "A benchmark harness for adversarially trained image classifiers",
        "docs_dir": "source",
        "site_dir": "site",
        "nav": navigation(),
        "theme": {"name": "material", "font": False, "features": ["navigation.sections", "content.code.copy"]},
        "extra": {"polyfills": [WORKER.name]},
        "plugins": [
            "search",
            "offline",
            {"mkdocstrings": {"handlers": {"python": {"paths": [str(ROOT)], "options": options}}}},
        ],
        "markdown_extensions": [
            "tables",
            "attr_list",
            "md_in_html",
            "pymdownx.superfences",
            {"toc": {"permalink": True}},
        ],
    }


# ------------------------------------------------------------------------------------- pages from the code


def _attacks() -> str:
    parts = ["# Attacks", "`bench list NAME` prints one of these. A suite says which attacks run, with which settings."]
    for name, entry in entries_of("attacks").items():
        suites = ", ".join(f"`{suite}`" for suite in entry["suites"]) or "none"
        parts += [
            f"## {name}",
            f"{prose(entry['about'])} Source: {prose(entry['paper'] or 'this program')}. In the suites: {suites}.",
            method_of(entry["text"]),
            hyperparameters(entry["parameters"]),
        ]
    return "\n\n".join(parts) + "\n"


def _board(name: str) -> str:
    return (
        f"---\nhide:\n  - toc\n---\n\n# {name}\n\n[On a page of its own]({name}.html).\n\n"
        f'<iframe src="{name}.html" title="{name}" style="width: 100%; height: 85vh; border: 0"></iframe>\n'
    )


def _api(module: str) -> str:
    about = sys.modules[module].__doc__ or ""
    return "\n\n".join([f"# {module}", method_of(about), *(f"::: {place}" for place in API[module].values())]) + "\n"


# --------------------------------------------------------------------------------------------------- links


def _relinked(place: str, text: str) -> str:
    """A page in which links to folders are words, since no page is there, and links to tables lead to their board."""
    tables = {f"leaderboard/boards/{name}.md": name for name in _boards()}

    def relinked(found: re.Match[str]) -> str:
        target = _target(place, found[2])
        if target in tables:
            return found[0].replace(f"{tables[target]}.md", f"{tables[target]}.board.md")
        return found[1].strip("![]") if target is not None and (ROOT / target).is_dir() else found[0]

    pieces = FENCE.split(text)
    return "".join(piece if number % 2 else LINK.sub(relinked, piece) for number, piece in enumerate(pieces))


def _target(place: str, link: str) -> str | None:
    """The place that a link of a page leads to; None: an address elsewhere, or one within the page."""
    path = urldefrag(link)[0]
    if not path or "://" in path or path.startswith("mailto:"):
        return None
    return (ROOT / place).parent.joinpath(unquote(path)).resolve().relative_to(ROOT).as_posix()


def linked_files(texts: Mapping[str, str]) -> set[str]:
    """Places of the files that pages link and that are no pages themselves."""
    links = (
        _target(place, found[1])
        for place, text in texts.items()
        for found in re.finditer(r"""(?:\]\(|src=")([^)"\s]+)""", FENCE.sub("", text))
    )
    return {target for target in links if target is not None} - set(texts)


class _Page(html.parser.HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def broken_links(site: Path) -> Iterator[str]:
    """`PAGE: LINK` for every link of a built site that leads to no file or no anchor of it."""
    pages = {path.resolve(): _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for page, parsed in pages.items():
        for link in parsed.links:
            path, anchor = urldefrag(link)
            if "://" in path or path.startswith(("mailto:", "data:", "javascript:")) or page.name == "404.html":
                continue
            target = (page.parent / unquote(path)).resolve() if path else page
            reached = target.is_file() and (
                not anchor or target not in pages or unquote(anchor) in pages[target].anchors
            )
            if not reached:
                yield f"{page.relative_to(site.resolve())}: {link}"


# --------------------------------------------------------------------------------------------------- build


def build(folder: Path) -> Path:
    """Write the source of the site to `folder` and build it there; returns the folder of the pages.

    Raises:
        BenchError: the generator is not installed, or fails.
    """
    generator = shutil.which("zensical", path=str(Path(sys.executable).parent)) or shutil.which("zensical")
    if generator is None:
        raise BenchError("the site's generator is not installed. Give: pip install 'advbench[docs]'")
    shutil.rmtree(folder, ignore_errors=True)
    texts = sources()
    for place, text in texts.items():
        write_text(folder / "source" / place, text)
    for place in linked_files(texts):
        (folder / "source" / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / place, folder / "source" / place)
    shutil.copyfile(WORKER, folder / "source" / WORKER.name)
    write_text(folder / "mkdocs.yml", json.dumps(configuration(), indent=2))
    built = subprocess.run([generator, "build"], cwd=folder, capture_output=True, text=True, check=False)
    if built.returncode:
        raise BenchError(f"the site was not built: {(built.stdout + built.stderr)[-2000:]}")
    return folder / "site"


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=BUILT, help="Folder to build it in; what it holds is lost."
)
def main(out: Path) -> None:
    """Build the site and follow every link of it."""
    try:
        site = build(out)
    except BenchError as error:
        raise click.ClickException(str(error)) from error
    broken = list(broken_links(site))
    if broken:
        raise click.ClickException("links that lead nowhere:\n" + "\n".join(broken))
    click.echo(f"{site / 'index.html'}")


if __name__ == "__main__":
    main()
