"""Boards of corruptions and of features as files, and as pages in a browser: numbers by hand."""

import csv
import io
import json
import math
from dataclasses import replace

import click
import pytest
from click.testing import CliRunner

from bench.cli import group
from bench.leaderboard.commands import commands
from bench.leaderboard.exports import render_csv, render_json
from bench.leaderboard.families import radius_families
from bench.leaderboard.html import PARTS, render_html
from bench.leaderboard.marks import MARKS, NORMS, TRUST
from bench.leaderboard.measured import table_of
from bench.leaderboard.records import leaderboard, page_name
from bench.leaderboard.writing import write_folder, write_leaderboard
from bench.results.file import write_result
from tests.leaderboard.test_html_board import EVIL, Elements
from tests.support.chromium import ENTER, TAB
from tests.support.example_results import corrupted, example, featured, with_attack, with_run

FEW = {"fog": (8, 4), "frost": (6, 1)}
WORSE = {"fog": (8, 1), "frost": (6, 1)}
VALUES = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 90.0, 80.0)
OTHER = (0.125, math.inf, 1.5, 1.75, 3.5, 3.0, 95.5, 70.25)


def both():
    """Two models under corruptions, and their features."""
    return [
        corrupted(WORSE, model="TRADES"),
        corrupted(FEW),
        featured(VALUES),
        featured(OTHER, model="TRADES"),
    ]


# ------------------------------------------------------------------------------------------ data and forms


def test_every_corruption_at_every_severity_with_its_interval():
    board = leaderboard([corrupted(FEW)])["boards"][0]
    row = board["rows"][0]
    assert (board["kind"], board["name"], board["rank_by"]) == ("corruptions", "digits-corruptions-v1", "Avg Acc 2")
    assert (board["threat"], board["threats"]) == ("corruptions", ["corruptions"])
    assert board["corruptions"] == {
        "set": "CIFAR-10-C",
        "generated": False,
        "names": ["fog", "frost"],
        "severities": [1, 2],
    }
    assert {label: one["percent"] for label, one in row["corruptions"].items()} == {
        "fog-1": 80.0,
        "fog-2": 40.0,
        "frost-1": 60.0,
        "frost-2": 10.0,
    }
    # Wilson at 4 of 10: ((0.4 + z^2/20) -+ z sqrt(0.4 0.6 / 10 + z^2/400)) / (1 + z^2/10)
    assert row["corruptions"]["fog-2"] == {"percent": 40.0, "low": 16.8180, "high": 68.7326}
    assert row["accuracies"]["Avg Acc 2"]["percent"] == 47.5
    assert row["results"][0]["corruptions"] == row["corruptions"]


def test_seeds_of_a_corruption_merge():
    runs = [corrupted(FEW, seed=0), corrupted({"fog": (8, 2), "frost": (6, 1)}, seed=1)]
    row = leaderboard(runs, merge_seeds=True)["boards"][0]["rows"][0]
    # 40 and 20: mean 30, standard deviation 10 sqrt(2), of two seeds, which leave any mean
    assert row["corruptions"]["fog-2"] == {"percent": 30.0, "low": 0.0, "high": 100.0, "sd": 14.1421}
    assert [result["corruptions"]["fog-2"]["percent"] for result in row["results"]] == [40.0, 20.0]


def test_features_keep_their_unit_and_the_accuracies_beside_them():
    board = leaderboard([featured(OTHER)])["boards"][0]
    row = json.loads(render_json({"boards": [board]}), parse_constant=pytest.fail)["boards"][0]["rows"][0]
    assert board["kind"] == "features"
    assert row["features"]["FDR ↓ adv"] == {"value": "inf"}
    assert row["features"]["MinSep ↑"] == {"value": 70.25}
    assert row["accuracies"]["PGD-20"]["percent"] == 50.0
    assert board["scales"]["FDR ↓ adv"] == {"decimals": 1, "lower_is_better": True, "compares": True}


def test_a_page_shows_the_numbers_of_both_tables_and_ranks_where_samples_are_known():
    page = Elements(render_html(leaderboard(both())))
    assert page.rows[0] == ["Rank", "Model", "Trust", "Avg Acc 2", "Clean", "Severity 1", "Severity 2"]
    assert page.rows[1][:3] == ["1-2", "ATresnet18", "?"]
    assert [text[:4] for text in page.rows[1][3:]] == ["47.5", "80.0", "70.0", "25.0"]
    assert [text[:4] for text in page.rows[2][3:]] == ["40.0", "80.0", "70.0", "10.0"]
    assert page.rows[1][4] == "80.0(49.0 to 94.3)"
    assert page.rows[3] == ["Model", "Trust", *table_of([featured(VALUES)]).headers[1:]]
    assert [row[0] for row in page.rows[4:]] == ["TRADESresnet18", "ATresnet18"]
    numbers = ["0.1", "inf", "0.001", "inf", "1.50", "1.75", "3.50", "3.00", "95.5", "70.2"]
    assert page.rows[4][2:] == numbers
    values = [value for tag, name, value in page.attributes if (tag, name) == ("td", "data-value")]
    assert values[:6] == ["0", "3", "47.5", "80.0", "70.0", "25.0"] and "Infinity" in values


def test_a_file_that_says_nothing_of_its_images():
    board = leaderboard([corrupted(FEW, corruptions={})])["boards"][0]
    assert (board["corruptions"]["set"], board["corruptions"]["generated"]) == ("corruptions", False)


def test_a_number_is_not_rounded_twice():
    shown = Elements(render_html(leaderboard([featured((31.349, *VALUES[1:]))]))).rows[1]
    assert shown[2] == "31.3" and shown[4] == "0.313"


def test_csv_has_every_corruption_and_feature():
    lines = list(csv.DictReader(io.StringIO(render_csv(leaderboard(both())))))
    assert [line["name"] for line in lines] == ["AT", "TRADES", "TRADES", "AT"]
    assert (lines[0]["Avg Acc 2"], lines[0]["fog-2"], lines[0]["frost-2"]) == ("47.5", "40.0", "10.0")
    assert (lines[2]["FDR ↓ clean"], lines[2]["FDR ↓ adv"], lines[2]["fog-2"]) == ("0.125", "inf", "")


def test_a_folder_has_a_page_of_each_kind(tmp_path):
    generated = corrupted(FEW, corruptions={"name": "digits-C-gen1", "generated": True, "digest": "f" * 64})
    paths = write_folder([*both(), generated, example()], tmp_path)
    names = ["digits-corruptions-v1.html", "digits-linf-8-255-features-v1.html", "digits-linf-8-255-tiny-v1.html"]
    assert [path.name for path in paths] == ["index.html", *names]
    index = Elements(paths[0].read_text(encoding="utf-8"))
    assert [row[-1] for row in index.rows[1:]] == [
        # A line each: the sets of images differ.
        "CIFAR-10-C, 10 samples: AT, Avg Acc 2 47.5digits-C-gen1 (generated), 10 samples: AT, Avg Acc 2 47.5",
        "TRADES, FDR ↓ clean 0.1",
        "AT, AA 30.0",
    ]
    assert paths[1].read_text(encoding="utf-8").count("<section") == 2  # generated images have a table of their own


@pytest.mark.parametrize("suffix", [".html", ".json", ".csv", ".md"])
def test_every_form_takes_corruptions_and_features(tmp_path, suffix):
    for number, result in enumerate(both()):
        write_result(result, tmp_path / f"{number}.h5")
    for numbers in ((0, 1), (2, 3)):
        files = [str(tmp_path / f"{number}.h5") for number in numbers]
        out = tmp_path / f"board{suffix}"
        done = CliRunner().invoke(group, ["leaderboard", *files, "--out", str(out)])
        assert done.exit_code == 0
        text = out.read_text(encoding="utf-8")
        assert "TRADES" in text and ("Avg Acc 2" if numbers == (0, 1) else "MinSep") in text
        out.unlink()


def test_commands_generate_the_images_again():
    made = {"name": "digits-C-gen1", "generated": True, "digest": "f" * 64, "generator": {"version": 1, "seed": 3}}
    run = {"corruptions": made, "dataset_size": 500, "command": "bench eval x --suite corruptions --limit 10"}
    lines = commands(corrupted(FEW, **run))
    assert lines == [
        "bench data corrupt --dataset digits --out digits-C --limit 10 --seed 3",
        "bench eval --suite corruptions --limit 10 --corruptions-dir digits-C",
    ]
    for line in lines:
        words = line.split()[1:]
        context = click.Context(group)
        command = group.get_command(context, words.pop(0))
        if isinstance(command, click.Group):
            command = command.get_command(context, words.pop(0))
        assert command is not None and command.make_context("bench", words).params
    whole = commands(corrupted(FEW, **{**run, "dataset_size": 10, "dataset": "npz:/home/me/my set.npz"}))
    assert whole[0] == "bench data corrupt --dataset 'npz:my set.npz' --out 'my set-C' --seed 3"
    published = commands(corrupted(FEW, command="bench eval x --suite corruptions"))
    assert published == ["bench eval --suite corruptions"]


# ------------------------------------------------------------------------------------- said in one place


def test_one_attack_at_several_radii_is_a_family():
    half = {"attack": "fgsm", "parameters": {}, "epsilon": "4/255"}
    result = with_attack(with_attack(example(), "PGD-20", **half), "AA", **{**half, "epsilon": "12/765"})
    assert [[record.label for record in family] for family in radius_families(result)] == [["PGD-20", "FGSM"]]
    assert radius_families(example()) == []
    assert radius_families(with_attack(result, "PGD-20", objective="adaptive", epsilon="1/255")) == [
        [result.attacks["AA"], result.attacks["FGSM"]]
    ]


def test_marks_are_written_once():
    page = Elements(render_html(leaderboard([example()])))
    signs = next(value for tag, name, value in page.attributes if (tag, name) == ("main", "data-signs"))
    assert json.loads(signs) == {"norms": dict(NORMS), "marks": dict(MARKS), "trust": dict(TRUST)}
    script = (PARTS / "page.js").read_text(encoding="utf-8")
    assert not [mark for mark in "✓✗" if mark in script] and not [text for text in TRUST.values() if text in script]
    told = CliRunner().invoke(group, ["trust", "--help"]).output
    assert all(f"{mark} {severity}" in told for severity, mark in MARKS.items() if severity != "unchecked")


def test_a_page_name_says_a_word_once():
    assert page_name(corrupted(FEW)) == "digits-corruptions-v1"
    assert page_name(with_run(replace(corrupted(FEW), suite={"name": "weather", "version": 2}))) == (
        "digits-corruptions-weather-v2"
    )


# ---------------------------------------------------------------------------------------------- a browser


@pytest.fixture
def page(chromium, tmp_path):
    """Three models under corruptions, one with an evil name on an evil set, and features of two."""
    evil = corrupted(FEW, model=EVIL, corruptions={"name": EVIL, "generated": False, "digest": "0" * 64})
    write_leaderboard([*both(), evil], tmp_path / "board.html")
    chromium.open(tmp_path / "board.html")
    yield chromium
    assert chromium.errors() == []


def board_with(chromium, text):
    """Selector of the section whose facts hold a text."""
    found = "return [...document.querySelectorAll('section.board')].find(s => s.innerText.includes(arguments[0])).id"
    return f"#{chromium.run(found, text)}"


def test_a_row_opens_to_its_corruptions_by_keyboard(page):
    for _ in range(40):
        page.press(TAB)
        if page.run("return document.activeElement.className") == "label":
            break
    page.press(ENTER)
    lines = page.run("return [...document.querySelector('.heat').rows].map(r => [...r.cells].map(c => c.innerText))")
    assert lines == [
        ["Severity", "1", "2", "Mean"],
        ["fog", "80.0", "40.0", "60.0"],
        ["frost", "60.0", "10.0", "35.0"],
    ]
    bars = page.run("return document.querySelector('.bars').innerText")
    numbers = {"Avg Acc 2": "47.5", "Clean": "80.0 (49.0 to 94.3)", "Severity 1": "70.0", "Severity 2": "25.0"}
    assert all(f"{title} {number}" in " ".join(bars.split()) for title, number in numbers.items())
    # Half of the widest interval, at 4 or 6 of 10: (68.7326 - 16.8180) / 2
    assert "up to ± 26.0 points" in page.run("return document.querySelector('.opened').innerText")


def test_a_cell_is_the_fuller_the_more_accurate(page):
    page.click("#board-0 tr[data-row='0'] button.label")
    shares = page.run("return [...document.querySelectorAll('.heat td')].map(c => c.style.getPropertyValue('--v'))")
    assert shares == ["80%", "40%", "60%", "60%", "10%", "35%"]
    backgrounds = page.run("return [...document.querySelectorAll('.heat td')].map(c => getComputedStyle(c).background)")
    assert len(set(backgrounds)) == 5


def test_a_row_opens_to_its_features(page):
    board = board_with(page, "suite features")
    page.click(f"{board} tr[data-row='0'] button.label")
    text = page.run(f"return document.querySelector('{board} .block.features').innerText").split("\n")
    assert text[:4] == ["Feature spaces", "FDR ↓ clean", "0.1", "FDR ↓ adv"] and text[4] == "inf"
    assert "50.0 (23.7 to 76.3)" in page.run(f"return document.querySelector('{board} .bars').innerText")


def test_lower_is_better_sorts_upwards_first(page):
    board = board_with(page, "suite features")
    names = f"return [...document.querySelectorAll('{board} tr[data-row] .label')].map(r => r.textContent)"
    sorts = f"return [...document.querySelectorAll('{board} thead th')].map(h => h.getAttribute('aria-sort'))"
    assert (page.run(names), page.run(sorts)[2]) == (["TRADES", "AT"], "ascending")
    page.click(f"{board} thead th:nth-child(4) button")  # FDR ↓ adv: 0.5 before infinity
    assert (page.run(names), page.run(sorts)[2:4]) == (["AT", "TRADES"], [None, "ascending"])
    page.click(f"{board} thead th:nth-child(9) button")  # SCR ↑ clean
    assert (page.run(names), page.run(sorts)[8]) == (["TRADES", "AT"], "descending")


def test_corruptions_are_a_threat_model_to_filter_by(page):
    choose = "const s = document.getElementById('filter-threat'); s.value = arguments[0];"
    choose += "s.dispatchEvent(new Event('input', {bubbles: true}));"
    choose += "return [...document.querySelectorAll('section.board')].map(s => !s.hidden)"
    assert page.run(choose, "corruptions").count(True) == 2
    assert page.run("return document.querySelector('.count').textContent") == "3 of 5 models"
    assert page.run(choose, "linf 8/255").count(True) == 1


def test_an_evil_set_shows_as_text(page):
    board = board_with(page, EVIL)
    assert page.run(f"return document.querySelector('{board} .label').textContent") == EVIL
    assert page.run(f"return document.querySelector('{board} .facts').textContent").startswith(f"{EVIL} · suite")
    assert page.run("return document.scripts.length") == 2


def test_a_phone_shows_the_whole_heat_table(page, tmp_path):
    names = [f"corruption_number_{number}" for number in range(3)]
    long = corrupted(dict.fromkeys(names, (10, 10, 10, 10, 10)))
    write_leaderboard([long], tmp_path / "long.html")
    page.open(tmp_path / "long.html", 390, 844)
    page.click("tr[data-row='0'] button.label")
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    inside = "const h = document.querySelector('.heat'), p = h.closest('.panel');"
    inside += "return h.getBoundingClientRect().right <= p.getBoundingClientRect().right"
    assert page.run(inside)


def test_a_table_that_fits_does_not_scroll(page):
    page.until("return document.querySelector('#board-0 .scroll').classList.contains('fits')")
    assert page.run("return getComputedStyle(document.querySelector('#board-0 .scroll')).overflowX") == "visible"
