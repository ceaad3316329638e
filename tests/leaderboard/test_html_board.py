"""Boards as files: the page (read as text, and used in a browser), JSON, CSV, folders, and the commands in them."""

import csv
import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
import pytest

from bench.cli import group
from bench.errors import BenchError
from bench.leaderboard.commands import commands
from bench.leaderboard.exports import render_csv, render_json
from bench.leaderboard.html import embedded, render_html, render_index
from bench.leaderboard.records import leaderboard, page_name
from bench.leaderboard.tables import build_table
from bench.leaderboard.text import without_folders
from bench.leaderboard.writing import write_folder, write_leaderboard
from bench.results.file import EvaluationResult, content_digest, read_result, write_result
from bench.results.findings import finding
from tests.support import example_results
from tests.support.chromium import ENTER, TAB, Chromium
from tests.support.command import bench
from tests.support.example_results import RUN, SUITE, predictions, record, single, with_attack, with_run

LINF = "\N{SCRIPT SMALL L}\N{INFINITY}"
EVIL = "<script>alert(1)</script>"


def example(**changes):
    """The example, as an evaluation whose probes looked at the model."""
    return with_run(example_results.example(**changes), evaluation={"probes": 64})


def models() -> list[EvaluationResult]:
    """AT; a TRADES that is better under AA, with a warning, on another backbone; a Masked that cannot be ranked."""
    warning = finding("gradients-cross-entropy", "warning", "zero on 31 %")
    trades = with_attack(with_run(example(), model="TRADES", backbone="wrn"), "AA", prediction=predictions(0, 1, 2, 3))
    masked = with_run(example(clean_prediction=predictions(*range(10))), model="Masked")
    for label in masked.attacks:
        masked = with_attack(masked, label, prediction=predictions(*range(10)))
    passed = finding("budget", "passed", "inside")
    return [
        example(findings=(passed,)),
        replace(trades, findings=(warning, passed)),
        replace(masked, findings=(finding("random-search", "error", "random images break 40 %"),)),
    ]


def other_data() -> EvaluationResult:
    """A model on another dataset, with one attack at two radii."""
    records = [record("PGD 8/255", "pgd", (0,), (0,)), record("PGD 4/255", "pgd", (0, 1, 2), (0, 1, 2))]
    records[1] = replace(records[1], epsilon="4/255")
    run = {**RUN, "model": "Other", "dataset": "npz:/home/me/mine.npz"}
    suite = {**SUITE, "derived": []}
    return example(run=run, suite=suite, attacks={one.label: one for one in records}, findings=())


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
    return with_run(example(suite=suite, findings=(told,)), hyperparameters={f"{word}<!--\u2028": [word]}, **words)


class Elements(HTMLParser):
    """Tags, attributes, and the text of every table cell and script of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.rows: list[list[str]] = []
        self.scripts: list[str] = []
        self._into: list[str] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th", "script"):
            self._into = self.rows[-1] if tag != "script" else self.scripts
            self._into.append("")

    def handle_endtag(self, tag: str) -> None:
        self._into = None if tag in ("td", "th", "script") else self._into

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into[-1] += data


# ------------------------------------------------------------------------------------------------- pages


def test_a_page_shows_the_numbers_of_the_table() -> None:
    page = Elements(render_html(leaderboard(models())))
    table = build_table(models())
    assert page.rows[0][3:] == [
        *table.headers[1:3],
        *(f"{title}{LINF} 8/255" for title in ("FGSM", "PGD-20", "AA")),
        *table.headers[6:],
    ]
    # Wilson at 8, 2, 10 and 0 of 10; centred, they would leave 0 to 100. The last column is a mean of two.
    bounds = {80.0: "(49.0 to 94.3)", 20.0: "(5.7 to 51.0)", 100.0: "(72.2 to 100.0)", 0.0: "(0.0 to 27.8)"}
    for shown, row in zip(page.rows[1:], table.rows, strict=True):
        errors = [bounds.get(cell.percent, f"±{cell.half_width:.1f}") for cell in row.cells[:-1]]
        assert shown[3:-1] == [f"{cell.percent:.1f}{error}" for cell, error in zip(row.cells, errors, strict=False)]
    assert [row[-1] for row in page.rows[1:]] == ["60.0±21.8", "55.0±20.9", "100.0(67.4 to 100.0)"]
    assert [row[:3] for row in page.rows[1:]] == [
        ["1-2", "TRADES\xa0†1,3wrn", "!"],
        ["1-2", "ATresnet18", "✓"],
        ["-", "Masked\xa0†2resnet18", "✗"],
    ]
    # Wilson at 5 of 10: z sqrt(1/40 + z^2/400) / (1 + z^2/10) = 0.263407
    assert page.rows[2][6] == "50.0±26.3"
    assert json.loads(page.scripts[0]) == json.loads(render_json(leaderboard(models())))


def test_nothing_in_a_result_acts_as_html() -> None:
    record = leaderboard([evil("<script>alert(1)</script>")])
    found = Elements(render_html(record))
    tame = Elements(render_html(leaderboard([evil("(script)alert(1)(/script)")])))
    assert found.tags["script"] == 2 and found.tags == tame.tags
    assert found.rows[1][1].startswith(EVIL)
    shown = json.loads(found.scripts[0])["boards"][0]["rows"][0]["results"][0]
    assert shown["hyperparameters"] == {f"{EVIL}<!--": [EVIL]}
    assert shown["commands"] == [f"bench eval --suite '{EVIL}'"]
    assert Elements(render_index({"a.html": record["boards"]})).tags["script"] == 2


def test_data_cannot_leave_its_element() -> None:
    text = embedded(["</script><!--<script>]]>&\u2028\u2029\ud800"])
    assert not re.search("[<>&\u2028\u2029\ud800]", text)
    assert json.loads(text) == ["</script><!--<script>]]>&\u2028\u2029\ud800"]


def test_equal_results_give_equal_bytes_in_any_order() -> None:
    first = render_html(leaderboard([*models(), other_data()]))
    assert first == render_html(leaderboard([other_data(), *models()[::-1]]))
    assert first.encode().decode() == first


def test_a_page_loads_nothing() -> None:
    record = leaderboard([*models(), other_data(), evil()])
    for page in (render_html(record), render_index({"a.html": record["boards"]})):
        loading = [value for _, name, value in Elements(page).attributes if name in ("src", "href", "srcset", "action")]
        assert set(loading) <= {"a.html"}
        assert "url(" not in page and "@import" not in page and "fetch(" not in page
        assert "default-src 'none'" in page


def test_what_does_not_compare_gets_a_section_of_its_own() -> None:
    record = leaderboard([*models(), other_data()])
    assert [board["dataset"] for board in record["boards"]] == ["digits", "npz:mine.npz"]
    assert [len(board["rows"]) for board in record["boards"]] == [3, 1]
    assert record["boards"][1]["curves"] == [["PGD 4/255", "PGD 8/255"]]
    assert record["boards"][0]["curves"] == []
    assert "/home/me" not in render_json(record)


def test_merged_seeds_keep_each_seed() -> None:
    runs = [with_run(example(), seed=0), with_run(replace(example(), clean_prediction=example().label), seed=1)]
    board = leaderboard(runs, merge_seeds=True)["boards"][0]
    row = board["rows"][0]
    assert board["seeds"] == [2]
    # 80 and 100: mean 90, standard deviation 10 sqrt(2)
    assert row["accuracies"]["Clean"] == {"percent": 90.0, "low": 0.0, "high": 100.0, "sd": 14.1421}
    assert [result["accuracies"]["Clean"]["percent"] for result in row["results"]] == [80.0, 100.0]
    page = render_html(leaderboard(runs, merge_seeds=True))
    assert "90.0(0.0 to 100.0)" in Elements(page).rows[1]
    assert "interval, over training seeds and test images" in page


# --------------------------------------------------------------------------------------------- JSON, CSV


def test_json_holds_percent_interval_trust_and_digest() -> None:
    board = leaderboard(models())["boards"][0]
    row = next(row for row in board["rows"] if row["name"] == "AT")
    # Centre (1/2 + z^2/20) / (1 + z^2/10) = 1/2, half width as above.
    assert row["accuracies"]["PGD-20"] == {"percent": 50.0, "low": 23.6593, "high": 76.3407}
    assert (row["rank"], row["trust"], row["ranked"]) == ([1, 2], "passed", True)
    assert (row["ranks"]["AA"], row["ranks"]["PGD-20"], board["rank_by"]) == ([1, 2], [1, 2], "AA")
    assert row["results"][0]["digest"] == content_digest(models()[0])
    assert board["attacks"]["PGD-20"]["parameters"] == {"steps": 20, "step_size": "2/255"}
    assert board["attacks"]["AA"]["radius"] == 8 / 255


def test_checks_are_told_once_and_an_own_text_stays() -> None:
    own = finding("budget", "passed", "seen") | {"advice": "another"}
    record = leaderboard([*models(), with_run(example(findings=(own,)), model="Own")])
    findings = [one for row in record["boards"][0]["rows"] for one in row["results"][0]["findings"]]
    assert record["checks"]["budget"]["meaning"] == finding("budget", "passed", "")["meaning"]
    assert [one.get("advice") for one in findings if one["name"] == "budget"].count("another") == 1
    assert sum("advice" in one for one in findings) == 1


def test_numbers_that_json_lacks_become_text() -> None:
    odd = finding("budget", "passed", "a\nb\u202e", float("nan"), float("inf"))
    text = render_json(leaderboard([example(findings=(odd,))]))
    told = json.loads(text, parse_constant=pytest.fail)["boards"][0]["rows"][0]["results"][0]["findings"][0]
    assert (told["value"], told["threshold"], told["message"]) == ("nan", "inf", "a b")


def test_csv_has_a_line_per_model() -> None:
    lines = list(csv.DictReader(io.StringIO(render_csv(leaderboard([*models(), other_data()])))))
    assert [line["name"] for line in lines] == ["TRADES", "AT", "Masked", "Other"]
    assert (lines[1]["PGD-20"], lines[1]["PGD-20 low"], lines[1]["PGD-20 high"]) == ("50.0", "23.6593", "76.3407")
    ranks = [(line["rank by"], line["rank low"], line["rank high"]) for line in lines]
    assert ranks == [("AA", "1", "2"), ("AA", "1", "2"), ("AA", "", ""), ("Worst case", "1", "1")]
    assert (lines[2]["trust"], lines[3]["PGD-20"], lines[3]["PGD 4/255"]) == ("error", "", "30.0")
    assert lines[0]["digests"] == content_digest(models()[1])


def test_notes_of_a_row_are_in_every_form() -> None:
    doubtful = with_run(models()[1], evaluation={"precision": "bf16"}, checkpoint="last", epoch=6, finished=False)
    warned = "TRADES: gradients-cross-entropy: zero on 31 % (warning)"
    searched = (
        "TRADES: attacks searched in bf16, every success judged in fp32: accuracies under attack are upper bounds, "
        "which a search in fp32 may lower (note)"
    )
    unfinished = "TRADES: checkpoint of epoch 6 of 110: training was not finished (note)"
    record = leaderboard([models()[0], doubtful])
    board = record["boards"][0]
    row = next(row for row in board["rows"] if row["name"] == "TRADES")
    trained = "Training differs in backbone: resnet18 for AT; wrn for TRADES"
    assert [board["notes"][number - 1] for number in row["notes"]] == [warned, searched, unfinished, trained]
    lines = {line["name"]: line for line in csv.DictReader(io.StringIO(render_csv(record)))}
    assert lines["TRADES"]["notes"] == f"{warned}; {searched}; {unfinished}; {trained}"
    assert lines["AT"]["notes"] == trained
    page = render_html(record)
    assert f"<li>{searched}</li>" in page and f"<li>{unfinished}</li>" in page


def test_a_best_checkpoint_is_shown_beside_its_backbone() -> None:
    page = Elements(render_html(leaderboard([example(), with_run(example(), checkpoint="best")])))
    assert sorted(row[1] for row in page.rows[1:]) == ["ATbest · resnet18", "ATresnet18"]


def test_a_loss_of_ones_own_is_of_a_row_and_no_parameter_of_the_board() -> None:
    given = {"steps": 20, "step_size": "2/255", "objective_sha256": "a" * 64}
    own = with_attack(example(), "PGD-20", objective="/home/me/own.py:loss", parameters=given)
    board = leaderboard([own])["boards"][0]
    assert board["rows"][0]["results"][0]["objectives"] == {"PGD-20": "own.py:loss [sha256 aaaaaaaa]"}
    assert board["attacks"]["PGD-20"]["parameters"] == {"steps": 20, "step_size": "2/255"}


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", '=HYPERLINK("http://x","y")'])
def test_a_spreadsheet_sees_no_formula(name: str) -> None:
    suite = {**SUITE, "derived": [{"label": name, "worst_of": ["FGSM"]}]}
    rows = list(csv.reader(io.StringIO(render_csv(leaderboard([with_run(example(suite=suite), model=name)])))))
    assert f"'{name}" in rows[0] and f"'{name}" in rows[1]
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@"))]


# ---------------------------------------------------------------------------------------------- commands

TRAINED: dict[str, Any] = {
    **RUN,
    "training_data": {"name": "digits", "train_size": 1297},
    "hyperparameters_given": {"beta": "4", "name": "a b"},
    "protocol_given": {"epochs": "5", "flip": False, "milestones": [3, 4]},
    "checkpoint": "best",
    "command": "bench eval /home/me/runs/x/best --suite=full --eps 8/255 --eps l2=0.5 --device cuda:1 "
    "--adaptive ~/lab/loss.py:mine --out /home/me/x.h5 --data /data",
}


def test_commands_that_make_a_result_again() -> None:
    assert commands(with_run(example(), **TRAINED)) == [
        "bench train --defense at --dataset digits --backbone resnet18 --seed 0 --limit-train 1297 --set beta=4 "
        "--set 'name=a b' --epochs 5 --no-flip --milestones 3,4",
        "bench eval runs/digits/resnet18/at/seed-0/best --suite full --eps 8/255 --eps l2=0.5 --adaptive loss.py:mine",
    ]


def test_commands_are_quoted_and_need_no_recorded_one() -> None:
    wicked = with_run(example(), command="bench eval --model 'a.py:f; rm -rf ~' --suite quick")
    assert commands(wicked) == ["bench eval --model 'a.py:f; rm -rf ~' --suite quick"]
    bare = with_run(example(), command="", dataset_size=500, evaluation={"seed": 3, "convention": "final"})
    assert commands(bare) == ["bench eval --suite tiny --limit 10 --seed 3 --convention final"]
    assert commands(with_run(example(), command="bench eval 'unclosed")) == ["bench eval --suite tiny"]


def test_the_commands_parse() -> None:
    for line in commands(with_run(example(), **TRAINED)):
        _, name, *arguments = shlex.split(line)
        command = group.get_command(click.Context(group), name)
        assert command is not None and command.make_context(name, arguments).params


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("/home/me/x.npz", "x.npz"),
        ("npz:/home/me/x.npz", "npz:x.npz"),
        ("--model=/a/b.py:f", "--model=b.py:f"),
        ("~/x.pt", "x.pt"),
        ("../../x.pt", "x.pt"),
        (r"C:\Users\me\x.pt", "x.pt"),
        ("runs/digits/at", "runs/digits/at"),
        ("8/255", "8/255"),
        ("l2=128/255", "l2=128/255"),
    ],
)
def test_no_folder_of_a_machine_remains(word: str, expected: str) -> None:
    assert without_folders(word) == expected


# ------------------------------------------------------------------------------------------------- files


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of result files, with images beside one of them."""
    for number, result in enumerate([*models(), other_data()]):
        write_result(result, tmp_path / "runs" / f"{number}.h5")
    (tmp_path / "runs" / "0.adversarials.h5").write_bytes(b"not a result")
    return tmp_path


@pytest.mark.parametrize("suffix", [".html", ".json", ".csv"])
def test_the_suffix_chooses_the_form(files: Path, suffix: str) -> None:
    out = files / f"board{suffix}"
    code, output = bench("leaderboard", files / "runs", "--out", out)
    assert code == 0
    assert output.count("## ") == 2 and "TRADES" in output and "Other" in output
    record = leaderboard([read_result(files / "runs" / f"{number}.h5") for number in range(4)])
    forms = {".html": render_html, ".json": render_json, ".csv": render_csv}
    assert out.read_text(encoding="utf-8") == forms[suffix](record)


def test_markdown_stays_one_table(files: Path) -> None:
    code, output = bench(
        "leaderboard", *(files / "runs" / f"{number}.h5" for number in range(3)), "--out", files / "b.md"
    )
    assert code == 0 and (files / "b.md").read_text(encoding="utf-8").strip() == output.strip()
    for options in ((), ("--out", files / "c.md")):
        code, output = bench("leaderboard", files / "runs", *options)
        assert (code, output.count("\n")) == (2, 1) and "do not compare" in output
    assert not (files / "c.md").exists()


@pytest.mark.parametrize("name", ["board.pdf", "board", "board.HTM"])
def test_another_suffix_is_one_line(files: Path, name: str) -> None:
    code, output = bench("leaderboard", files / "runs" / "0.h5", "--out", files / name)
    assert (code, output.count("\n")) == (2, 1)
    assert "ends in .html, .md, .csv or .json" in output
    code, output = bench("sweep", "--dataset", "digits", "--board", files / name)
    assert (code, output.count("\n")) == (2, 1) and ".html, .md" in output
    with pytest.raises(BenchError, match="cannot write a board"):
        write_leaderboard(models(), files / name)
    assert not (files / name).exists()


def test_a_folder_has_a_page_for_each_board_and_an_index(files: Path) -> None:
    code, output = bench("leaderboard", files / "runs", "--folder", "--out", files / "boards")
    names = ["digits-linf-8-255-tiny-v1.html", "npz-mine.npz-linf-8-255-tiny-v1.html"]
    assert code == 0 and output.split() == [str(files / "boards" / name) for name in ("index.html", *names)]
    index = Elements((files / "boards" / "index.html").read_text(encoding="utf-8"))
    assert [value for tag, name, value in index.attributes if (tag, name) == ("a", "href")] == names
    assert index.rows[1] == [f"digits {LINF} 8/255", "tiny, version 1", "3", "10", "TRADES, AA 40.0"]
    page = (files / "boards" / names[1]).read_text(encoding="utf-8")
    assert page == render_html(leaderboard([read_result(files / "runs" / "3.h5")]))


def test_results_of_one_page_that_do_not_compare_are_sections_of_it(tmp_path: Path) -> None:
    fewer = replace(example(), index=example().index + 1)
    assert page_name(fewer) == page_name(example())
    index, page = write_folder([example(), fewer], tmp_path)
    assert page.read_text(encoding="utf-8").count("<section") == 2
    assert "10/10" in index.read_text(encoding="utf-8")


def test_the_index_takes_no_best_over_boards_that_do_not_compare(tmp_path: Path) -> None:
    few = with_run(single(True), model="Lucky", evaluation={"probes": 64})
    few = replace(few, suite={**SUITE, "derived": []})
    many = example(suite={**SUITE, "derived": []})
    index, _ = write_folder([few, many], tmp_path)
    page = index.read_text(encoding="utf-8")
    # One right sample is 100 %, and says less than 30 % of ten.
    lines = ["no attack, 1 samples: Lucky, Clean 100.0", f"{LINF} 8/255, 10 samples: AT, AA 30.0"]
    assert f"<td>{'<br>'.join(lines)}</td>" in page


def test_a_page_name_is_a_file_name() -> None:
    name = page_name(with_run(example(suite={"name": "../x\0", "version": 1}), dataset="../../etc/passwd"))
    assert name == "passwd-x-v1" or re.fullmatch(r"[\w.+-]+", name)
    assert not name.startswith(".") and "/" not in name


def test_folders_without_results_or_without_a_place(files: Path) -> None:
    (files / "empty").mkdir()
    assert "no result file in" in bench("leaderboard", files / "empty")[1]
    assert "--folder needs a folder" in bench("leaderboard", files / "runs", "--folder")[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("runs", "--out", "empty"), "For a page each in this folder, add --folder."),
        (("runs", "--folder", "--out", "runs/0.h5"), "is no folder for pages. Name a folder"),
        (("runs", "--folder", "--out", "board.html"), "leave --folder out for one page."),
        (("runs", "--out", "runs/0.h5/board.html"), "Give a file in a writable folder."),
        (("empty", "--out", "board.pdf"), "no result file in"),
        (("nowhere", "--out", "board.html"), "Give a result file."),
        (("runs",), "`bench leaderboard FILES --out board.html` shows them on one page."),
    ],
)
def test_a_wrong_place_is_one_line_that_names_the_fix(
    files: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(files)
    Path("empty").mkdir()
    code, output = bench("leaderboard", *arguments)
    assert (code, output.count("\n")) == (2, 1)
    assert told in output
    assert sorted(path.name for path in files.iterdir()) == ["empty", "runs"]


# ---------------------------------------------------------------------------------------------- a browser


@pytest.fixture
def page(chromium: Chromium, tmp_path: Path) -> Iterator[Chromium]:
    """Two boards: three models (and one with an evil name) on digits, one on other data."""
    evil_twin = with_run(example(clean_prediction=predictions(*range(9))), model=EVIL, hyperparameters={EVIL: EVIL})
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


def test_an_opened_row_follows_when_sorted(page: Chromium) -> None:
    page.click("#board-0 tr[data-row='2'] button.label")
    page.click(HEAD.format(2))
    order = "return [...document.querySelectorAll('#board-0 tbody tr')].map(r => r.dataset.row || r.className)"
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
