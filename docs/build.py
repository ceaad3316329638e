"""Writes what these pages take from the code and from committed results: `python -m docs.build`.

Whole pages: docs/defenses. Parts of README.md, docs/boards.md, docs/protocol.md, docs/terms.md and docs/trust.md:
between `<!-- NAME -->` and `<!-- end -->`. A test compares the committed pages with what is written here.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import click

from bench.catalogue.names import DEFAULT_RECIPE, recipe_names, suite_names
from bench.catalogue.plugins import make_attack
from bench.catalogue.protocol import TrainingProtocol
from bench.catalogue.recipes import load_recipe, protocol_for, setting_help
from bench.catalogue.suites import AttackCell, load_suite
from bench.cli.list_ import entries_of
from bench.data.datasets import DATASET_PROTOCOLS
from bench.experiments.paper import exhibit_names, load_exhibit
from bench.interfaces import ThreatModel
from bench.leaderboard.paper.boards import Board, read_boards
from bench.leaderboard.paper.claims import claims_table
from bench.leaderboard.paper.defense_pages import Block, DefenseFacts, Published, render_index, render_page
from bench.leaderboard.paper.prose import deviations_of, prose
from bench.leaderboard.paper.published import PublishedFigure, published
from bench.leaderboard.paper.surrogates import surrogate_table
from bench.leaderboard.render.markdown import bare_table, table_lines
from bench.leaderboard.tables.table import with_columns
from bench.leaderboard.wording.marks import MARKS
from bench.results.explanations import MARKED, STAGES, TERMS
from bench.system.files import write_text
from bench.trust.thresholds import THRESHOLDS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
HEADLINE = "cifar10-linf-full-v3-first1000"
HEADLINE_COLUMNS = ("Clean", "Worst case", "AutoAttack")
NOT_TABLED = ("clean", "corruptions", "corruptions-3d")
"""Suites without attacks."""


def pages() -> dict[Path, str]:
    """Every page that is written here, in whole or in part."""
    facts = all_facts()
    boards = read_boards(ROOT / "leaderboard" / "boards")
    folder = DOCS / "defenses"
    texts = {folder / f"{one.name}.md": render_page(one, boards, paper_numbers(one.name)) for one in facts}
    texts[folder / "README.md"] = render_index(facts, boards)
    parts: Mapping[str, Callable[[], str]] = {
        "protocol": protocol_table,
        "recipes": recipe_table,
        "datasets": dataset_table,
        "suites": suite_tables,
        "deviations": lambda: deviation_list(facts),
        "checks": check_table,
        "thresholds": threshold_table,
        "marks": mark_table,
        "stages": stage_list,
        "terms": term_table,
        "claims": lambda: claims_table(boards),
        "surrogates": lambda: surrogate_table(boards),
        "headline": lambda: headline(next(board for board in boards if board.name == HEADLINE)),
    }
    for page in (ROOT / "README.md", *(DOCS / f"{name}.md" for name in ("boards", "protocol", "terms", "trust"))):
        texts[page] = re.sub(
            r"<!-- (\w+) -->\n.*?<!-- end -->",
            lambda found: f"<!-- {found[1]} -->\n\n{parts[found[1]]()}\n\n<!-- end -->",
            page.read_text(encoding="utf-8"),
            flags=re.DOTALL,
        )
    return texts


def headline(board: Board) -> str:
    """Some columns of a board."""
    table = with_columns(board.table, HEADLINE_COLUMNS)
    return table_lines(dataclasses.replace(table, rows=tuple(dataclasses.replace(row, notes=()) for row in table.rows)))


# -------------------------------------------------------------------------------------------- defenses


def all_facts() -> list[DefenseFacts]:
    """Every defense of this repository, by name."""
    return [
        DefenseFacts(
            name=name,
            module=name.replace("-", "_"),
            docstring=entry["text"],
            about=entry["about"],
            family=entry["family"] or "other",
            paper=entry["paper"],
            requires=tuple(entry["requires"]),
            parameters=entry["parameters"],
        )
        for name, entry in entries_of("defenses").items()
    ]


def paper_numbers(name: str) -> Published:
    """What the Adv-DPNP paper prints of a defense, under the titles of our columns."""
    numbers: dict[Block, dict[str, list[PublishedFigure]]] = {}
    for exhibit in (load_exhibit(one) for one in exhibit_names() if one.startswith("table")):
        for block in exhibit.blocks:
            figures = published(int(exhibit.name.removeprefix("table")), block.published, block.backbone)
            for column, title in exhibit.columns.items():
                if (name, column) in figures:
                    found = numbers.setdefault((block.dataset, block.backbone), {})
                    found.setdefault(title, []).append(figures[name, column])
    return Published(_protocol("cifar10").epochs, numbers)


def deviation_list(facts: list[DefenseFacts]) -> str:
    """What each defense's file says of deviations."""
    texts = {one.name: deviations_of(one.docstring) or "None." for one in facts}
    return "\n\n".join(f"**[{name}](defenses/{name}.md)**\n\n{text}" for name, text in texts.items())


# -------------------------------------------------------------------------------------------- protocol


def protocol_table() -> str:
    """Every setting, its default and where a dataset departs from it."""
    names = [name for name in DATASET_PROTOCOLS if name not in ("npz", "cifar100")]
    protocols = {name: dataclasses.asdict(_protocol(name)) for name in names}
    headers = ["Setting", *(name.replace("cifar10", "cifar10, cifar100") for name in names), "About"]
    rows = [
        [f"`{setting}`", *(_value(protocols[name][setting]) for name in names), prose(about)]
        for setting, (_, about) in setting_help().items()
    ]
    usual = load_recipe(DEFAULT_RECIPE)
    backbones = ["backbone", *(usual.settings(name)["backbone"] for name in names), "default network"]
    return bare_table(headers, [*rows, backbones])


def recipe_table() -> str:
    """What recipes have on CIFAR-10, where they differ, and where their numbers are from."""
    recipes = [load_recipe(name) for name in sorted(recipe_names(), key=lambda name: (name != DEFAULT_RECIPE, name))]
    settings = {"backbone": [recipe.settings("")["backbone"] for recipe in recipes]}
    protocols = [_protocol("cifar10", recipe.name) for recipe in recipes]
    for name in setting_help():
        settings[name] = ["" if protocol.ignores(name) else getattr(protocol, name) for protocol in protocols]
    rows = [[f"`{name}`", *map(_value, values)] for name, values in settings.items() if len(set(values)) > 1]
    sources = "\n".join(
        f"- **{one.name}**, version {one.version}: {prose(one.about)}. From {prose(one.source)}." for one in recipes
    )
    return f"{bare_table(['Setting', *(recipe.name for recipe in recipes)], rows)}\n\n{sources}"


def _protocol(name: str, recipe: str = DEFAULT_RECIPE) -> TrainingProtocol:
    about = DATASET_PROTOCOLS[name]
    return protocol_for(name, about.epsilons, about.crop_padding, about.flip, {}, recipe)


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def dataset_table() -> str:
    """Radii and augmentation."""
    rows = [
        [name, *(about.epsilons[norm] for norm in ("linf", "l2", "l1")), prose(about.flip_note)]
        for name, about in DATASET_PROTOCOLS.items()
    ]
    return bare_table(["Dataset", "linf", "l2", "l1", "Augmentation"], rows)


def suite_tables() -> str:
    """The attacks of every suite, with radii and steps as they are on CIFAR."""
    return "\n\n".join(_suite(name) for name in suite_names())


def _suite(name: str) -> str:
    suite = load_suite(name)
    head = f"**{name}**, version {suite.version}: {prose(suite.about)}."
    included = suite.resolve(DATASET_PROTOCOLS["cifar10"].epsilons, {})
    rows = [_cell(cell) for cell in included.cells]
    rows += [[label, "per-sample worst case", "", "", ", ".join(labels)] for label, labels in suite.worst_of.items()]
    if name in NOT_TABLED:
        return head
    return f"{head}\n\n{bare_table(['Column', 'Attack', 'Norm', 'Radius', 'Settings'], rows)}"


def _cell(cell: AttackCell) -> list[str]:
    threat = ThreatModel(cell.norm, str(cell.epsilon))
    settings = dataclasses.asdict(make_attack(cell.attack, cell.parameters))
    texts = []
    for name, value in settings.items():
        if name == "step_size":
            length = threat.length(value)
            texts.append(f"step {length:g}" if threat.transformation else f"step {_in_levels(length)}")
        elif name == "random_start":
            texts.append("random start" if value else "from the clean image")
        elif name not in ("version", "seed") and (name, value) not in (("restarts", 1), ("loss", "cross-entropy")):
            texts.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
    if cell.objective != "default":
        texts.append(f"{cell.objective} objective")
    if cell.measure_loss:
        texts.append("loss measured")
    return [prose(cell.label), cell.attack, cell.norm, threat.epsilon, ", ".join(texts)]


def _in_levels(length: float) -> str:
    levels = float(Fraction(length).limit_denominator(10**6) * 255)
    return f"{levels:.4g}/255"


# --------------------------------------------------------------------------------------------- checks


def check_table() -> str:
    """Every check of the trust report."""
    rows = [
        [f"`{name}`", prose(entry["about"]), prose(entry["advice"])] for name, entry in entries_of("checks").items()
    ]
    return bare_table(["Check", "What it means when it fires", "What to do"], rows)


def threshold_table() -> str:
    """What the measured checks allow."""
    rows = [[", ".join(f"`{name}`" for name in names), text] for names, text in THRESHOLDS.items()]
    return bare_table(["Check", "Fires beyond"], rows)


def mark_table() -> str:
    """What the marks of checks and rows mean."""
    rows = [[MARKS[severity], severity, meaning] for severity, meaning in MARKED.items()]
    return bare_table(["Mark", "Severity", "The row"], rows)


def stage_list() -> str:
    """Which checks to look at first."""
    return "\n".join(f"{number}. **{stage.title}**: {stage.text}" for number, stage in enumerate(STAGES, start=1))


def term_table() -> str:
    """Words of boards, pages and commands."""
    return bare_table(["Term", "What it means"], [[f"`{name}`", prose(text)] for name, text in TERMS.items()])


@click.command()
def main() -> None:
    """Write the pages whose text has changed."""
    for path, text in pages().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
            click.echo(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
