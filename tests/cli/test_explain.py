"""`bench explain` and the pages of `bench list`: everything has one, a slip leads to the nearest."""

import ast
import json
import re

import pytest

from bench.catalogue.names import built_in
from bench.leaderboard.paper.boards import COMMITTED, written_rows
from bench.leaderboard.wording.marks import MARKS
from bench.results.explanations import MARKED, STAGES, TERMS
from bench.results.findings import CHECKS
from bench.trust.thresholds import THRESHOLDS
from tests import ROOT


def test_every_check_is_of_one_step_and_everything_that_is_listed_is_explained(bench, monkeypatch):
    staged = [name for stage in STAGES for name in stage.checks]
    assert sorted([*staged, "rounding"]) == sorted(CHECKS)
    assert set(MARKED) == set(MARKS)
    assert {name for names in THRESHOLDS for name in names} <= set(CHECKS)
    monkeypatch.setenv("COLUMNS", "80")
    code, listed = bench("explain")
    assert code == 0 and max(map(len, listed.splitlines())) <= 80
    words = set(re.split(r"[\s,]+", listed))
    assert {*CHECKS, *TERMS, *MARKS, *MARKS.values(), "±", "†"} <= words
    for name in (*list(CHECKS)[:2], *TERMS, *MARKS, *MARKS.values(), "±", "†"):
        code, text = bench("explain", name)
        assert code == 0 and max(map(len, text.splitlines())) <= 80, name


def test_a_check_says_what_to_do_when_it_fires_and_what_comes_first(bench):
    text = " ".join(bench("explain", "Loss gap")[1].split())
    check = CHECKS["loss-gap"]
    assert f"When it fires: {check.meaning}." in text and f"To do: {check.advice}." in text
    # 2 and 5 points: what docs/trust.md has of the same check.
    assert "Fires beyond: 2 points: a note; 5 points: a warning." in text
    assert "Step 5 of 7, whether they were enough: `loss-gap`, " in text and "repair it first" in text
    both = bench("explain", "Worst case (linf)")[1]
    assert both.startswith("worst-case, a check of the trust report\n") and "\n\nworst-case\nMeans: Per image" in both
    assert bench("explain", "±")[1].startswith("interval\nMeans: ± is half the width of a 95 % interval")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["explain", "worstcas"], "no check, term or mark is called 'worstcas'. Nearest: worst-case, "),
        (["explain", "trades"], "has a page of its own: bench list trades"),
        (["list", "trade"], "nothing here is called 'trade'. Nearest: trades, "),
        (["list", "xyzzy"], "nothing here is called 'xyzzy'. All names: bench list"),
    ],
)
def test_a_slip_leads_to_the_nearest(bench, words, told):
    code, output = bench(*words)
    assert (code, told in output, output.count("\n")) == (2, True, 1)


def test_the_page_of_a_defense(bench, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, text = bench("list", "trades")
    head, *sections = re.split(r"^([A-Z ]+)\n\n", text, flags=re.M)
    assert code == 0 and head.startswith("[defense]\ntrades: Cross-entropy on clean images, and the same prediction")
    assert "Family: multi-step\n" in head and "File: defenses/trades.py\n" in head
    parts = dict(zip(sections[::2], sections[1::2], strict=True))
    assert list(parts) == ["METHOD", "DEVIATIONS", "HYPERPARAMETERS", "COMMITTED ROWS"]
    assert "beta * KL(p(x_i) || p(x'_i))" in parts["METHOD"]
    assert parts["DEVIATIONS"].startswith("the divergence is taken between two log-softmaxes")
    assert parts["HYPERPARAMETERS"].startswith("beta = 6.0 (official code)  weight of the divergence")
    # As leaderboard/boards/cifar10-linf-full-v3-first1000.md has it.
    row = next(line for line in parts["COMMITTED ROWS"].splitlines() if "full-v3-first1000" in line)
    assert re.search(r"1-8 of 13 by AutoAttack +53\.1 ± 3\.1 +13\.5 ± 2\.1$", row)


def test_a_board_of_several_rows_of_a_defense_has_them_all(tmp_path):
    (tmp_path / "tiny").mkdir()
    table = "## tiny, ranked by AutoAttack\n\n| Rank | Model | Clean |\n|--:|:--|--:|\n"
    table += "| 1-2 | at (best) | **80.0** |\n| 1-2 | at | 70.0 |\n| 3 | at-he | 60.0 |\n"
    (tmp_path / "tiny.md").write_text(table, encoding="utf-8")
    (tmp_path / "other.md").write_text(table, encoding="utf-8")  # no results are beside it
    assert [*written_rows(tmp_path, "at")] == [
        {"Board": "tiny", "Rank": "1-2 of 3 by AutoAttack", "Model": "at (best)", "Clean": "80.0"},
        {"Board": "tiny", "Rank": "1-2 of 3 by AutoAttack", "Model": "at", "Clean": "70.0"},
    ]
    assert [*written_rows(tmp_path / "gone", "at")] == []


def test_every_kind_has_pages_and_one_name_may_have_several(bench):
    listed = {line.partition(":")[0]: line.partition(":")[2].split(", ") for line in bench("list")[1].splitlines()}
    for names in listed.values():
        assert bench("list", names[-1].strip())[0] == 0, names
    text = bench("list", "autoattack")[1]
    assert text.startswith("[attack]\nautoattack: ") and "\n\n[suite]\nautoattack  (version " in text
    assert "Suites: " in text
    assert list(json.loads(bench("list", "trades", "--json")[1])["defenses"]) == ["trades"]


def test_every_defense_has_a_row_on_a_board_or_none(bench):
    with_rows = {name for name in built_in("defense") if [*written_rows(COMMITTED, name)]}
    assert {"at", "trades", "adv-dpnp"} <= with_rows
    without = min(set(built_in("defense")) - with_rows)
    assert "None are beside the program" in bench("list", without)[1]


def texts_at_run_time(path):
    """Constants of a file that a person may be shown: all texts but docstrings, and the help of a command."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bodies = [node.body[0] for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "command"]
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and node not in bodies}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in silent)
    return [node.value for node in constants if isinstance(node.value, str)]


def test_no_text_at_run_time_points_to_a_file_of_the_checkout():
    writing = ROOT / "leaderboard" / "paper" / "defense_pages.py"  # writes pages of the documentation
    files = [path for folder in ("bench", "leaderboard") for path in (ROOT / folder).rglob("*.py") if path != writing]
    found = [
        (path.name, text)
        for path in files
        for text in texts_at_run_time(path)
        if re.search(r"(?<![\w-])docs/|CONTRIBUTING|ARCHITECTURE\.md|SECURITY\.md", text)
    ]
    assert len(files) > 150 and found == []
