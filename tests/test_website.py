"""The site: all that is public is on it and documented, its links lead somewhere, and it needs no network."""

import ast
import inspect
import itertools
import re
import runpy
import sys
from pathlib import Path

import pytest

from bench.catalogue.names import built_in
from tests import ROOT


@pytest.fixture(scope="module")
def site():
    """The script that builds it."""
    from docs import website

    return website


@pytest.fixture(scope="module")
def texts(site):
    """Every page of its source."""
    return site.sources()


def documented_constants(path):
    """Names that a file assigns and describes in the line below."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for node, after in itertools.pairwise(body):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield target.id


def undocumented(name, value, constants):
    """What of a public name has no docstring: itself, or a method that no class above documents."""
    if name in constants:
        return []
    if not inspect.isclass(value) and not inspect.isfunction(value):
        return [name]
    found = [] if value.__doc__ else [name]
    if inspect.isclass(value):
        methods = [key for key, one in vars(value).items() if key[0] != "_" and inspect.isfunction(one)]
        fields = inspect.get_annotations(value)  # whose default may be a function
        found += [f"{name}.{key}" for key in methods if key not in fields and not inspect.getdoc(getattr(value, key))]
    return found


def test_every_public_name_is_documented(site):
    constants = {
        name
        for folder in ("interfaces", "results")
        for path in (ROOT / "bench" / folder).glob("*.py")
        for name in documented_constants(path)
    }
    missing = [
        f"{module}: {one}"
        for module, names in site.API.items()
        for name in names
        for one in undocumented(name, getattr(sys.modules[module], name), constants)
        if name != "leaderboard"
    ]
    assert missing == []
    assert undocumented("Odd", type("Odd", (), {"places": places}), ()) == ["Odd", "Odd.places"]
    assert undocumented("RADIUS", 0.1, {"NORMS"}) == ["RADIUS"]


def test_the_api_pages_name_all_that_is_public(site, texts):
    import bench

    assert set(site.API["bench"]) == set(bench.__all__)
    assert {"Attack", "Defense", "ThreatModel"} <= set(site.API["bench.interfaces"])
    for module, places in site.API.items():
        assert re.findall(r"^::: (.*)$", texts[f"api/{module}.md"], re.M) == list(places.values())


def places(listed):
    for one in listed.values() if isinstance(listed, dict) else listed:
        yield from [one] if isinstance(one, str) else places(one)


def test_every_page_is_in_the_navigation_once(site, texts):
    named = list(places(site.navigation()))
    assert sorted(named) == sorted(texts)
    assert {f"docs/defenses/{name}.md" for name in built_in("defense")} <= set(named)
    assert all(f"\n## {name}\n" in texts["attacks.md"] for name in built_in("attack"))


def test_links_of_the_source_lead_to_pages_and_files(site, texts):
    files = site.linked_files(texts)
    assert [place for place in files if not (ROOT / place).is_file()] == []
    assert {"docs/figures/figure4.png", "defenses/trades.py", "leaderboard/boards/digits-linf-full-v3.html"} <= files
    assert "(../../leaderboard/boards/digits-linf-full-v3.board.md)" in texts["docs/defenses/at.md"]
    assert "[checkpoints]" not in texts["docs/boards.md"] and "the checkpoints of all rows" in texts["docs/boards.md"]


def test_a_link_or_an_anchor_that_leads_nowhere_is_found(site, tmp_path):
    (tmp_path / "a.html").write_text('<p id="x"><a href="b.html#y">1</a><a href="#x">2</a><a href="https://a.b">3</a>')
    (tmp_path / "b.html").write_text('<a href="a.html#x">1</a><img src="gone.png"><a name="z" href="b.html#z">2</a>')
    assert [*site.broken_links(tmp_path)] == ["a.html: b.html#y", "b.html: gone.png"]


def test_the_site_is_built_and_needs_no_network(site, tmp_path):
    pytest.importorskip("zensical", reason="the site's generator is not installed (make docs installs it)")
    built = site.build(tmp_path)
    assert [*site.broken_links(built)] == []
    for module, names in site.API.items():
        page = (built / "api" / f"{module}.html").read_text(encoding="utf-8")
        assert [place for place in names.values() if f'id="{place}"' not in page] == []
    pages = [path.read_text(encoding="utf-8") for path in built.rglob("*.html")]
    loaded = {
        link for page in pages for link in re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"(http[^\"]*)", page)
    }
    assert loaded == set()


def test_the_description_for_an_index_has_no_relative_links():
    text = runpy.run_path(str(ROOT / "setup.py"), run_name="read")["description"]()
    assert re.findall(r"\]\((?!https?:)[^)]*\)", text) == [] and "<!--" not in text and "![" not in text
    assert "arxiv.org/abs/2504.03782" in text and text.startswith("# advbench\n\nBenchmark adversarially")
    assert "26 ways" in text and text.endswith("`--help`.\n")
    assert 'dynamic = ["readme"]' in Path(ROOT / "pyproject.toml").read_text(encoding="utf-8")
