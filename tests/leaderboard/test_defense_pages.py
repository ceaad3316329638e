"""Pages of the defenses: what a docstring becomes, and which of the paper's numbers a board is compared with."""

import re

import pytest

from bench.errors import BenchError
from bench.leaderboard.paper.boards import read_boards
from bench.leaderboard.paper.defense_pages import DefenseFacts, Published, render_page
from bench.leaderboard.paper.prose import deviations_of, prose
from bench.leaderboard.paper.published import PublishedFigure
from bench.results.file import write_result
from tests.support.example_results import RUN, corrupted, example, with_run

DOCSTRING = """AT: the <first> line_ of a*b, `x_*` and https://example.org/a_b.

    minimise   |x|
    where      x

Deviations: nothing
of note.

* one
  thing
* another
"""
FACTS = DefenseFacts("at", "at", DOCSTRING, "Trains.", "multi-step", "One et al.", ("st",), {})


def figure(table, text, dataset="cifar10"):
    return PublishedFigure(table, dataset, "resnet18", "at", "clean", text)


PAPER = Published(
    110,
    {
        ("cifar10", "resnet18"): {"Clean": [figure(1, "84.1")], "FGSM": [figure(2, "50.0"), figure(6, "50.5")]},
        ("svhn", "resnet18"): {"Clean": [figure(2, "93.0", "svhn")], "MinSep ↑": [figure(4, "70.00", "svhn")]},
    },
)


def page(folder, *results):
    (folder / "tiny").mkdir(exist_ok=True)
    for number, result in enumerate(results):
        write_result(result, folder / "tiny" / f"{number}.h5")
    return render_page(FACTS, read_boards(folder), PAPER)


def ours(**run):
    return with_run(example(findings=()), **{"model": "at", "dataset_size": 10, **run})


def row(text, title):
    return [
        cell.strip() for cell in re.search(rf"^\| {re.escape(title)} \|.*$", text, re.MULTILINE)[0].split("|")[2:-1]
    ]


def test_a_docstring_becomes_prose_equations_and_a_list(tmp_path):
    text = page(tmp_path, ours())
    assert r"AT: the \<first\> line\_ of a\*b, `x_*` and https://example.org/a_b." in text
    assert "```text\nminimise   |x|\nwhere      x\n```" in text
    assert "## Deviations\n\nNothing of note.\n\n- one thing\n- another\n" in text
    assert text.index("where      x") < text.index("## Deviations")
    assert "Trains. Needs a trained st of the same seed. Family: multi-step. File: " in text
    assert deviations_of("Only a line.") == ""
    assert prose("two\n  lines ~") == r"two lines \~"


def test_numbers_stand_beside_the_paper(tmp_path):
    """Half of Wilson's interval is 1.96 / (1 + 1.96^2 / 10) * sqrt(p (1 - p) / 10 + 1.96^2 / 400)."""
    text = page(tmp_path, ours(dataset="cifar10"))
    assert "|  | Ours: cifar10 | Paper: cifar10, resnet18 | Paper: svhn, resnet18 |" in text
    assert row(text, "Clean") == ["80.0 (49.0 to 94.3)", "84.1", "93.0"]
    assert row(text, "FGSM") == ["60.0 ± 26.0", "50.0 (Table 2); 50.5 (Table 6)", ""]
    assert row(text, "MinSep ↑") == ["70.00"]
    assert text.index("### Only in the paper") < text.index("MinSep")


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"dataset": "cifar10"}, "column cifar10, resnet18 has the same data, network and epochs"),
        ({"dataset": "digits"}, "**Not comparable with the paper's numbers**: those are of other data and networks"),
        (
            {"dataset": "cifar10", "backbone": "cnn-small"},
            "of other data and networks (cifar10, resnet18; svhn, resnet18)",
        ),
        ({"dataset": "cifar10", "protocol": {"epochs": 30}}, "trained for 110 epochs and shows all test images"),
        ({"dataset": "cifar10", "dataset_size": 10000}, "trained for 110 epochs and shows all test images"),
    ],
    ids=["same", "data", "network", "epochs", "part of the images"],
)
def test_a_page_says_whether_numbers_compare(run, words, tmp_path):
    assert words in page(tmp_path, ours(**run))


def test_seeds_are_merged_and_networks_apart(tmp_path):
    text = page(tmp_path, ours(seed=0), ours(seed=1), ours(seed=0, backbone="wrn", checkpoint_digest="e" * 64))
    # 10 of 14, with the four images that are added, of equal seeds; Wilson's for the other.
    assert row(text, "Clean")[:2] == ["80.0 (47.8 to 95.1) (0.0)", "80.0 (49.0 to 94.3)"]
    assert "network resnet18, wrn, epochs 110, test images all 10, seeds 0, 1;" in text
    assert "In brackets: standard deviation over seeds." in text


def test_a_board_of_corruptions_is_read_as_one(tmp_path):
    right = {"fog": (8, 6), "frost": (4, 2)}
    text = page(tmp_path, corrupted(right, **{**RUN, "model": "at", "dataset": "cifar10", "dataset_size": 10}))
    assert row(text, "Severity 2")[0].startswith("40.0 ± ")


def test_other_defenses_of_a_board_have_no_place_on_the_page(tmp_path):
    text = page(tmp_path, ours(model="at-he", defense="at-he"))
    assert "No board holds it yet." in text


def test_an_empty_board_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchError, match="empty holds no result file"):
        read_boards(tmp_path)
