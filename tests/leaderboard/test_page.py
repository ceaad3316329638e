"""Boards as a page: read as text, and used in a browser."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench.leaderboard.render.board_data import board_data
from bench.leaderboard.render.files import write_leaderboard
from bench.leaderboard.render.html import PARTS, embedded, render_html, render_index
from bench.leaderboard.render.json_csv import render_json
from bench.leaderboard.tables.build import build_table
from bench.leaderboard.wording.marks import MARKS, NORMS, TRUST
from bench.results.file import EvaluationResult
from bench.results.findings import finding
from tests.support.chromium import ENTER, TAB, Chromium
from tests.support.command import bench
from tests.support.example_boards import FEW, measured, models, other_data
from tests.support.example_results import (
    FEATURES,
    SUITE,
    corrupted,
    example,
    featured,
    predictions,
    probed,
    record,
    with_run,
)
from tests.support.html_pages import Elements

LINF = "\N{SCRIPT SMALL L}\N{INFINITY}"
EVIL = "<script>alert(1)</script>"


def evil(word: str = EVIL) -> EvaluationResult:
    """A result that says `word` wherever it can say anything."""
    words = {
        "model": word,
        "backbone": word,
        "defense": word,
        "dataset": word,
        "command": f"bench eval x --suite '{word}'",
    }
    told = finding("budget", "warning", word) | {"name": word, "meaning": word, "advice": word}
    suite = {**SUITE, "name": word, "derived": [{"label": word, "worst_of": ["FGSM"]}]}
    return with_run(probed(suite=suite, findings=(told,)), hyperparameters={f"{word}<!--\u2028": [word]}, **words)


def read(*results: EvaluationResult, **options) -> Elements:
    return Elements(render_html(board_data(results, **options)))


# ------------------------------------------------------------------------------------------------- as text


def test_a_page_shows_the_numbers_of_the_table() -> None:
    page = read(*models())
    table = build_table(models())
    threats = {title: f"{title}{LINF} 8/255" for title in ("FGSM", "PGD-20", "AA")}
    assert page.rows[0][3:] == [threats.get(title, title) for title in table.columns]
    # Wilson at 8, 2, 10 and 0 of 10; centred, they would leave 0 to 100. The last column is a mean of two.
    bounds = {80.0: "(49.0 to 94.3)", 20.0: "(5.7 to 51.0)", 100.0: "(72.2 to 100.0)", 0.0: "(0.0 to 27.8)"}
    for shown, row in zip(page.rows[1:], table.rows, strict=True):
        *cells, _ = row.cells.values()
        errors = [bounds.get(cell.value, f"±{cell.half_width:.1f}") for cell in cells]
        assert shown[3:-1] == [f"{cell.value:.1f}{error}" for cell, error in zip(cells, errors, strict=True)]
    assert [row[-1] for row in page.rows[1:]] == ["60.0±21.8", "55.0±20.9", "100.0(67.4 to 100.0)"]
    assert [row[:3] for row in page.rows[1:]] == [
        ["1-2", "TRADES\xa0†1,3wrn", "!"],
        ["1-2", "ATresnet18", "✓"],
        ["-", "Masked\xa0†2resnet18", "✗"],
    ]
    # Wilson at 5 of 10: z sqrt(1/40 + z^2/400) / (1 + z^2/10) = 0.263407
    assert page.rows[2][6] == "50.0±26.3"
    assert json.loads(page.scripts[0]) == json.loads(render_json(board_data(models())))


def test_a_page_of_corruptions_and_features_has_ranks_where_samples_are_known() -> None:
    page = read(*measured())
    assert page.rows[0] == ["Rank", "Model", "Trust", "Avg Acc 2", "Clean", "Severity 1", "Severity 2"]
    assert page.rows[1][:3] == ["1-2", "ATresnet18", "?"]
    assert [text[:4] for text in page.rows[1][3:]] == ["47.5", "80.0", "70.0", "25.0"]
    assert [text[:4] for text in page.rows[2][3:]] == ["40.0", "80.0", "70.0", "10.0"]
    assert page.rows[1][4] == "80.0(49.0 to 94.3)"
    assert page.rows[3] == ["Model", "Trust", *build_table([featured()]).columns]
    assert [row[0] for row in page.rows[4:]] == ["TRADESresnet18", "ATresnet18"]
    numbers = ["0.1", "inf", "0.001", "inf", "1.50", "1.75", "3.50", "3.00", "95.5", "70.2"]
    assert page.rows[4][2:] == numbers
    values = [value for tag, name, value in page.attributes if (tag, name) == ("td", "data-value")]
    assert values[:6] == ["0", "3", "47.5", "80.0", "70.0", "25.0"] and "Infinity" in values


def test_a_number_is_not_rounded_twice() -> None:
    shown = read(featured((31.349, *FEATURES[1:]))).rows[1]
    assert shown[2] == "31.3" and shown[4] == "0.313"


def test_merged_seeds_show_their_mean_and_of_what_the_interval_is() -> None:
    runs = [with_run(probed(), seed=0), with_run(replace(probed(), clean_prediction=probed().label), seed=1)]
    assert "90.0(0.0 to 100.0)" in read(*runs, merge_seeds=True).rows[1]
    assert "over training seeds and test images" in render_html(board_data(runs, merge_seeds=True))


def test_notes_are_listed_and_a_best_checkpoint_is_shown_beside_its_backbone() -> None:
    unfinished = with_run(probed(), model="Half", checkpoint="last", epoch=6, finished=False)
    data = board_data([probed(), with_run(probed(), checkpoint="best"), unfinished])
    page = render_html(data)
    assert all(f"<li>{note}</li>" in page for note in data["boards"][0]["notes"])
    names = sorted(row[1] for row in Elements(page).rows[1:])
    assert names == ["ATbest · resnet18", "ATresnet18", "Half\xa0†1resnet18"]


def test_nothing_in_a_result_acts_as_html() -> None:
    found, tame = read(evil()), read(evil("(script)alert(1)(/script)"))
    assert found.tags["script"] == 2 and found.tags == tame.tags
    assert found.rows[1][1].startswith(EVIL)
    shown = json.loads(found.scripts[0])["boards"][0]["rows"][0]["results"][0]
    assert shown["hyperparameters"] == {f"{EVIL}<!--": [EVIL]}
    assert shown["commands"] == [f"bench eval --suite '{EVIL}'"]


def test_data_cannot_leave_its_element() -> None:
    text = embedded(["</script><!--<script>]]>&\u2028\u2029\ud800"])
    assert not re.search("[<>&\u2028\u2029\ud800]", text)
    assert json.loads(text) == ["</script><!--<script>]]>&\u2028\u2029\ud800"]


def test_equal_results_give_equal_bytes_in_any_order() -> None:
    first = render_html(board_data([*models(), other_data()]))
    assert first == render_html(board_data([other_data(), *models()[::-1]]))
    assert first.encode().decode() == first


def test_a_page_loads_nothing() -> None:
    data = board_data([*models(), other_data(), evil()])
    for page in (render_html(data), render_index({"a.html": data["boards"]})):
        found = Elements(page)
        loading = [value for _, name, value in found.attributes if name in ("src", "href", "srcset", "action")]
        assert set(loading) <= {"a.html"} and found.tags["script"] == 2
        assert "url(" not in page and "@import" not in page and "fetch(" not in page
        assert "default-src 'none'" in page


def test_marks_are_written_once() -> None:
    page = read(probed())
    signs = next(value for tag, name, value in page.attributes if (tag, name) == ("main", "data-signs"))
    assert json.loads(str(signs)) == {"norms": dict(NORMS), "marks": dict(MARKS), "trust": dict(TRUST)}
    script = (PARTS / "page.js").read_text(encoding="utf-8")
    assert not [mark for mark in "✓✗" if mark in script] and not [text for text in TRUST.values() if text in script]
    told = bench("trust", "--help")[1]
    assert all(f"{mark} {severity}" in told for severity, mark in MARKS.items() if severity != "unchecked")


# -------------------------------------------------------------------------------- attacks, in a browser


@pytest.fixture
def page(chromium: Chromium, tmp_path: Path) -> Iterator[Chromium]:
    """Two boards: three models (and one with an evil name) on digits, one on other data."""
    evil_twin = with_run(probed(clean_prediction=predictions(*range(9))), model=EVIL, hyperparameters={EVIL: EVIL})
    write_leaderboard([*models(), evil_twin, other_data()], tmp_path / "board.html")
    chromium.open(tmp_path / "board.html")
    yield chromium
    assert chromium.errors() == []


NAMES = "return [...document.querySelectorAll('#board-0 tbody tr[data-row]')].filter(r => !r.hidden)"
NAMES += ".map(r => r.querySelector('.label').textContent)"
HEAD = "#board-0 thead th:nth-child({}) button"


def test_a_header_sorts(page: Chromium) -> None:
    assert page.run(NAMES) == ["TRADES", EVIL, "AT", "Masked"]
    page.click(HEAD.format(4))
    # Clean: 90, 80, 80; equal rows stay in the order of their ranks, and what cannot be believed is last.
    assert page.run(NAMES) == [EVIL, "TRADES", "AT", "Masked"]
    sorts = "return [...document.querySelectorAll('#board-0 thead th')].map(h => h.getAttribute('aria-sort'))"
    assert page.run(sorts)[:5] == [None, None, None, "descending", None]
    page.click(HEAD.format(4))
    assert page.run(NAMES) == ["TRADES", "AT", EVIL, "Masked"]
    page.click(HEAD.format(2))
    assert page.run(NAMES) == [EVIL, "AT", "TRADES", "Masked"]
    page.click(HEAD.format(1))
    assert page.run(NAMES) == ["TRADES", EVIL, "AT", "Masked"]


def test_filters(page: Chromium) -> None:
    count = "return document.querySelector('.count').textContent"
    choose = "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
    choose += "s.dispatchEvent(new Event('input', {bubbles: true}))"
    sections = "return [...document.querySelectorAll('section.board')].map(s => !s.hidden)"
    assert page.run(count) == "5 models"
    page.click("#filter-text")
    page.press("trad")
    assert (page.run(NAMES), page.run(count), page.run(sections)) == (["TRADES"], "1 of 5 models", [True, False])
    page.run(choose, "filter-text", "")
    page.run(choose, "filter-backbone", "wrn")
    assert page.run(NAMES) == ["TRADES"]
    page.run(choose, "filter-backbone", "")
    page.run(choose, "filter-trust", "error")
    assert page.run(NAMES) == ["Masked"]
    page.run(choose, "filter-trust", "")
    page.run(choose, "filter-threat", "linf 4/255")
    assert page.run(sections) == [False, True]
    page.run(choose, "filter-threat", "")
    page.run(choose, "filter-dataset", "digits")
    assert (page.run(sections), page.run(count)) == ([True, False], "4 of 5 models")


def test_clean_against_robust_is_drawn_to_scale_with_the_rows_that_no_other_beats(page: Chromium) -> None:
    points = "return Object.fromEntries([...document.querySelectorAll('#board-0 .scatter circle')].map(c =>"
    points += "[c.textContent.split(':')[0], [+c.getAttribute('cx'), +c.getAttribute('cy')]]))"
    found = page.run(points)
    # Clean and AA: TRADES 80 and 40, the evil one 90 and 30, AT 80 and 30, Masked 100 and 100.
    (x, y), wider, lower, far = (found[name] for name in ("TRADES", EVIL, "AT", "Masked"))
    assert wider[1] == lower[1] and lower[0] == x and far[0] - x == pytest.approx(2 * (wider[0] - x))
    assert y - far[1] == pytest.approx(6 * (lower[1] - y))
    # Masked is not ranked, and AT is beaten by both others.
    front = page.run("return document.querySelector('#board-0 .front').getAttribute('d')")
    assert [*map(float, re.findall(r"[\d.]+", front))] == [x, y, *wider]
    whiskers = page.run("return document.querySelectorAll('#board-0 .scatter .interval').length")
    assert whiskers == 4
    script = "document.querySelectorAll('#board-0 .scatter circle')[0].dispatchEvent(new MouseEvent('click'));"
    assert page.run(f"{script} return document.activeElement.getAttribute('aria-expanded')") == "true"
    assert page.run("return document.querySelector('#board-1 .scatter')") is None  # a single row


def test_the_scatter_follows_the_filters(page: Chromium) -> None:
    page.click("#filter-text")
    page.press("trad")
    assert page.run("return document.querySelectorAll('#board-0 .scatter circle').length") == 1


COLUMNS = (
    "return [...document.querySelectorAll('#board-0 .scroll > table > thead th')]"
    ".filter(h => !h.hidden).map(h => h.innerText.trim())"
)


def test_columns_are_chosen_and_those_of_the_training_are_offered(page: Chromium) -> None:
    assert page.run(COLUMNS)[:4] == ["Rank", "Model", "Trust", "Clean"]
    page.click("#board-0 .chooser summary")
    offered = page.run("return [...document.querySelectorAll('#board-0 .choices label')].map(l => l.textContent)")
    assert offered[0] == "Clean" and offered[-3:] == ["Backbone", "Recipe", "Extra data"]  # no row says its parameters
    page.click("#board-0 tr[data-row='0'] button.label")
    page.click(f"#board-0 .choices label:nth-child({len(offered) - 1}) input")
    page.click("#board-0 .choices label:nth-child(1) input")
    assert page.run(COLUMNS)[-1] == "Recipe" and "Clean" not in page.run(COLUMNS)
    cell = "return [...document.querySelectorAll('#board-0 tr[data-row] td.fact')].filter(c => !c.hidden)"
    assert page.run(f"{cell}[0].textContent") == "pang2021 version 1"
    spans = "const c = document.querySelector('#board-0 tr.opened > td').colSpan; return c"
    assert page.run(spans) == len(page.run(COLUMNS))


def test_nothing_scrolls_sideways_at_first_and_what_ranks_stays(page: Chromium, tmp_path: Path) -> None:
    many = [record(f"PGD number {number}", "pgd", (0, 1), (0, 1)) for number in range(18)]
    named = {one.label: one for one in [*many, record("AA", "autoattack", (0,), (0,))]}
    write_leaderboard([example(attacks=named, suite={**SUITE, "derived": []}, findings=())], tmp_path / "wide.html")
    page.open(tmp_path / "wide.html")
    shown = page.run(COLUMNS)
    assert page.run("return document.querySelector('#board-0 table').offsetWidth <= 1280 && innerWidth == 1280")
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    assert len(shown) < 12 and shown[3] == "Clean" and any(title.startswith("AA") for title in shown)
    assert page.run("return document.querySelector('.chooser summary').textContent").startswith("Columns (")


def test_a_row_says_how_to_verify_it_and_links_its_weights(page: Chromium, tmp_path: Path) -> None:
    hub = with_run(probed(), source="hf:somebody/robust-net", parameters=1234567)
    odd = with_run(probed(), model="Odd", source=f"hf:{EVIL}/x", parameters=99)
    write_leaderboard([hub, odd], tmp_path / "hub.html")
    page.open(tmp_path / "hub.html")
    page.click("tr[data-row='0'] button.label")
    text = "const p = document.querySelector('.reproduce');"
    text += "return [p.innerText, [...p.querySelectorAll('a')].map(a => a.href)]"
    told, links = page.run(text)
    assert links == ["https://huggingface.co/somebody/robust-net"]
    assert "bench verify RESULT.h5\nbench verify *.h5 --board BOARD.html" in told
    sizes = (
        "return [...document.querySelectorAll('tr[data-row] td:last-child')].map(c => [c.textContent, c.dataset.value])"
    )
    assert sorted(page.run(sizes)) == [["1,234,567", "1234567"], ["99", "99"]]


@pytest.mark.skipif("AXE_CORE" not in os.environ, reason="$AXE_CORE names no axe.min.js of npm's axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Chromium, tmp_path: Path, scheme: str) -> None:
    page.open(tmp_path / "board.html", prefers_color_scheme=scheme)
    page.run("document.querySelector('tr[data-row] button.label').click()")
    page.run("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    engine = Path(os.environ["AXE_CORE"]).read_text(encoding="utf-8")
    page.run(f"{engine}; window.found = null; axe.run().then(r => {{ window.found = r.violations.map(v => v.id); }})")
    page.until("return window.found !== null")
    assert page.run("return window.found") == []


def test_a_row_opens_by_keyboard(page: Chromium) -> None:
    focus = "const a = document.activeElement; return [a.className, a.textContent, a.getAttribute('aria-expanded')]"
    for _ in range(40):
        page.press(TAB)
        if page.run(focus)[0] == "label":
            break
    assert page.run(focus) == ["label", "TRADES", "false"]
    page.press(ENTER)
    assert page.run(focus)[2] == "true"
    panel = "return document.getElementById(document.activeElement.getAttribute('aria-controls')).innerText"
    text = page.run(panel)
    warning = finding("gradients-cross-entropy", "warning", "zero on 31 %")
    for part in (
        "zero on 31 %",
        f"To do: {warning['advice']}.",
        "1 check passed",
        "bench eval --suite tiny",
        "40.0 (16.8 to 68.7)",
    ):
        assert part in text
    assert warning["meaning"][1:] in text
    page.press(ENTER)
    assert page.run(focus)[2] == "false"
    assert page.run("return document.querySelector('tr.opened').getBoundingClientRect().height") == 0


def test_a_row_opens_to_its_accuracy_by_class(page: Chromium) -> None:
    """Of ten images of a class each, those that are right have 100."""
    page.click("#board-0 tr[data-row='0'] button.label")
    lines = page.run(
        "return [...document.querySelector('.classes .heat').rows].map(r => [...r.cells].map(c => c.innerText))"
    )
    assert lines[0] == ["Class", *map(str, range(10))]
    right = {title: [int(cell) for cell in cells] for title, *cells in lines[1:]}
    assert right["Clean"] == [100] * 8 + [0] * 2
    assert all(set(cells) <= {0, 100} and sum(cells) <= 800 for cells in right.values())


def test_an_opened_row_follows_when_sorted(page: Chromium) -> None:
    page.click("#board-0 tr[data-row='2'] button.label")
    page.click(HEAD.format(2))
    lines = "return [...document.querySelectorAll('#board-0 .scroll > table > tbody > tr')]"
    order = f"{lines}.map(r => r.dataset.row || r.className)"
    assert page.run(order) == ["1", "2", "opened", "0", "3"]


def test_what_is_evil_shows_as_text(page: Chromium) -> None:
    page.click("#board-0 tr[data-row='1'] button.label")
    assert page.run("return document.querySelector('tr.opened .values').innerText").split("\n") == [EVIL, EVIL]
    assert page.run("return document.scripts.length") == 2


def test_curves_are_drawn_where_there_are_radii(page: Chromium) -> None:
    page.click("#board-1 tr[data-row='0'] button.label")
    label = page.run("return document.querySelector('svg.curve').getAttribute('aria-label')")
    assert label == f"pgd, {LINF}. 0: 80.0 %, 4/255: 30.0 %, 8/255: 10.0 %"
    points = page.run(
        "return [...document.querySelectorAll('svg.curve circle')].map(c => [c, 'cx'].map(k => +c.getAttribute('cx')))"
    )
    (left, _), (middle, _), (right, _) = points
    assert middle == pytest.approx((left + right) / 2)


def test_themes(page: Chromium, tmp_path: Path) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    page.open(tmp_path / "board.html", prefers_color_scheme="dark")
    dark = page.run(paper)
    page.click("#theme")
    light = page.run(paper)
    assert (dark, light) == ("rgb(20, 23, 26)", "rgb(255, 255, 255)")
    page.run("localStorage.clear()")


def test_a_phone_scrolls_the_table_and_not_the_page(page: Chromium, tmp_path: Path) -> None:
    page.open(tmp_path / "board.html", 390, 844)
    page.click("#board-0 tr[data-row='0'] button.label")
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    shifted = page.run(
        "const s = document.querySelector('.scroll'); s.scrollLeft = 150;"
        "const left = (e) => Math.round(e.getBoundingClientRect().left - s.getBoundingClientRect().left);"
        "return [s.scrollLeft, left(s.querySelector('tbody .name')), left(s.querySelector('.panel'))]"
    )
    assert shifted == [150, 0, 0]
    assert page.run("return document.querySelector('.panel').getBoundingClientRect().width <= 390")


def test_nothing_is_requested(page: Chromium) -> None:
    page.click("#board-0 tr[data-row='0'] button.label")
    assert page.run("return performance.getEntriesByType('resource').map(entry => entry.name)") == []


# ------------------------------------------------------------------ corruptions and features, in a browser


@pytest.fixture
def measured_page(chromium, tmp_path):
    """Three models under corruptions, one with an evil name on an evil set, and features of two."""
    evil = corrupted(FEW, model=EVIL, corruptions={"name": EVIL, "generated": False, "digest": "0" * 64})
    write_leaderboard([*measured(), evil], tmp_path / "board.html")
    chromium.open(tmp_path / "board.html")
    yield chromium
    assert chromium.errors() == []


def board_with(chromium, text):
    """Selector of the section whose facts hold a text."""
    found = "return [...document.querySelectorAll('section.board')].find(s => s.innerText.includes(arguments[0])).id"
    return f"#{chromium.run(found, text)}"


def test_a_row_opens_to_its_corruptions_by_keyboard(measured_page):
    for _ in range(40):
        measured_page.press(TAB)
        if measured_page.run("return document.activeElement.className") == "label":
            break
    measured_page.press(ENTER)
    lines = measured_page.run(
        "return [...document.querySelector('.heat').rows].map(r => [...r.cells].map(c => c.innerText))"
    )
    assert lines == [
        ["Severity", "1", "2", "Mean"],
        ["fog", "80.0", "40.0", "60.0"],
        ["frost", "60.0", "10.0", "35.0"],
    ]
    bars = measured_page.run("return document.querySelector('.bars').innerText")
    numbers = {"Avg Acc 2": "47.5", "Clean": "80.0 (49.0 to 94.3)", "Severity 1": "70.0", "Severity 2": "25.0"}
    assert all(f"{title} {number}" in " ".join(bars.split()) for title, number in numbers.items())
    # Half of the widest interval, at 4 or 6 of 10: (68.7326 - 16.8180) / 2
    assert "up to ± 26.0 points" in measured_page.run("return document.querySelector('.opened').innerText")


def test_a_cell_is_the_fuller_the_more_accurate(measured_page):
    measured_page.click("#board-0 tr[data-row='0'] button.label")
    shares = measured_page.run(
        "return [...document.querySelectorAll('.heat td')].map(c => c.style.getPropertyValue('--v'))"
    )
    assert shares == ["80%", "40%", "60%", "60%", "10%", "35%"]
    backgrounds = measured_page.run(
        "return [...document.querySelectorAll('.heat td')].map(c => getComputedStyle(c).background)"
    )
    assert len(set(backgrounds)) == 5


def test_a_row_opens_to_its_features(measured_page):
    board = board_with(measured_page, "suite features")
    measured_page.click(f"{board} tr[data-row='0'] button.label")
    text = measured_page.run(f"return document.querySelector('{board} .block.features').innerText").split("\n")
    assert text[:4] == ["Feature spaces", "FDR ↓ clean", "0.1", "FDR ↓ adv"] and text[4] == "inf"
    assert "50.0 (23.7 to 76.3)" in measured_page.run(f"return document.querySelector('{board} .bars').innerText")


def test_lower_is_better_sorts_upwards_first(measured_page):
    board = board_with(measured_page, "suite features")
    names = f"return [...document.querySelectorAll('{board} tr[data-row] .label')].map(r => r.textContent)"
    sorts = f"return [...document.querySelectorAll('{board} thead th')].map(h => h.getAttribute('aria-sort'))"
    assert (measured_page.run(names), measured_page.run(sorts)[2]) == (["TRADES", "AT"], "ascending")
    measured_page.click(f"{board} thead th:nth-child(4) button")  # FDR ↓ adv: 0.5 before infinity
    assert (measured_page.run(names), measured_page.run(sorts)[2:4]) == (["AT", "TRADES"], [None, "ascending"])
    measured_page.click(f"{board} thead th:nth-child(9) button")  # SCR ↑ clean
    assert (measured_page.run(names), measured_page.run(sorts)[8]) == (["TRADES", "AT"], "descending")


def test_corruptions_are_a_threat_model_to_filter_by(measured_page):
    choose = "const s = document.getElementById('filter-threat'); s.value = arguments[0];"
    choose += "s.dispatchEvent(new Event('input', {bubbles: true}));"
    choose += "return [...document.querySelectorAll('section.board')].map(s => !s.hidden)"
    assert measured_page.run(choose, "corruptions").count(True) == 2
    assert measured_page.run("return document.querySelector('.count').textContent") == "3 of 5 models"
    assert measured_page.run(choose, "linf 8/255").count(True) == 1


def test_an_evil_set_shows_as_text(measured_page):
    board = board_with(measured_page, EVIL)
    assert measured_page.run(f"return document.querySelector('{board} .label').textContent") == EVIL
    assert measured_page.run(f"return document.querySelector('{board} .facts').textContent").startswith(
        f"{EVIL} · suite"
    )
    assert measured_page.run("return document.scripts.length") == 2


def test_a_phone_shows_the_whole_heat_table(measured_page, tmp_path):
    names = [f"corruption_number_{number}" for number in range(3)]
    long = corrupted(dict.fromkeys(names, (10, 10, 10, 10, 10)))
    write_leaderboard([long], tmp_path / "long.html")
    measured_page.open(tmp_path / "long.html", 390, 844)
    measured_page.click("tr[data-row='0'] button.label")
    assert measured_page.run("return document.documentElement.scrollWidth <= innerWidth")
    inside = "const h = document.querySelector('.heat'), p = h.closest('.panel');"
    inside += "return h.getBoundingClientRect().right <= p.getBoundingClientRect().right"
    assert measured_page.run(inside)


def test_a_table_that_fits_does_not_scroll(measured_page):
    measured_page.until("return document.querySelector('#board-0 .scroll').classList.contains('fits')")
    assert (
        measured_page.run("return getComputedStyle(document.querySelector('#board-0 .scroll')).overflowX") == "visible"
    )
