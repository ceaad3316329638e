"""Boards on disk: the form that a suffix asks for, folders of pages, and places that cannot be written."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.leaderboard.render.board_data import board_data, page_name
from bench.leaderboard.render.files import FORMS, write_folder, write_leaderboard
from bench.results.file import read_result, write_result
from tests.support.command import bench
from tests.support.example_boards import FEW, measured, models, other_data
from tests.support.example_results import SUITE, corrupted, probed, single, with_run
from tests.support.html_pages import Elements

LINF = "\N{SCRIPT SMALL L}\N{INFINITY}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of result files, with images beside one of them."""
    folder = tmp_path_factory.mktemp("runs")
    for number, result in enumerate([*models(), other_data(), *measured()]):
        write_result(result, folder / f"{number}.h5")
    (folder / "0.adversarials.h5").write_bytes(b"not a result")
    return folder


@pytest.fixture
def files(runs: Path, tmp_path: Path) -> Path:
    """An empty folder but for `runs`."""
    (tmp_path / "runs").symlink_to(runs)
    return tmp_path


@pytest.mark.parametrize("suffix", [".html", ".json", ".csv"])
def test_the_suffix_chooses_the_form(files: Path, suffix: str) -> None:
    out = files / f"board{suffix}"
    code, output = bench("leaderboard", files / "runs", "--out", out)
    assert code == 0
    assert output.count("## ") == 4 and all(text in output for text in ("TRADES", "Other", "Avg Acc 2", "MinSep"))
    data = board_data([read_result(files / "runs" / f"{number}.h5") for number in range(8)])
    assert out.read_text(encoding="utf-8") == FORMS[suffix](data)


def test_markdown_stays_one_table(files: Path) -> None:
    for numbers in ((0, 1, 2), (4, 5), (6, 7)):
        paths = [files / "runs" / f"{number}.h5" for number in numbers]
        code, output = bench("leaderboard", *paths, "--out", files / "b.md")
        assert code == 0 and (files / "b.md").read_text(encoding="utf-8").strip() == output.strip()
    for options in ((), ("--out", files / "c.md")):
        code, output = bench("leaderboard", files / "runs", *options)
        assert (code, output.count("\n")) == (2, 1) and "do not compare" in output
    assert not (files / "c.md").exists()


@pytest.mark.parametrize("name", ["board.pdf", "board", "board.HTM"])
def test_another_suffix_is_one_line(files: Path, name: str) -> None:
    for arguments in (("leaderboard", files / "runs/0.h5", "--out"), ("sweep", "--dataset", "digits", "--board")):
        code, output = bench(*arguments, files / name)
        assert (code, output.count("\n")) == (2, 1) and ".html, .md, .csv or .json" in output
    with pytest.raises(BenchError, match="cannot write a board"):
        write_leaderboard(models(), files / name)
    assert not (files / name).exists()


def test_a_folder_has_a_page_for_each_board_and_an_index(files: Path) -> None:
    generated = {"name": "digits-C-gen1", "generated": True, "digest": "f" * 64}
    write_result(corrupted(FEW, corruptions=generated), files / "generated.h5")
    code, output = bench("leaderboard", files / "runs", files / "generated.h5", "--folder", "--out", files / "boards")
    names = ["digits-corruptions-v1", "digits-linf-8-255-features-v1", "digits-linf-8-255-tiny-v1"]
    names = [f"{name}.html" for name in [*names, "npz-mine.npz-linf-8-255-tiny-v1"]]
    assert code == 0 and output.split() == [str(files / "boards" / name) for name in ("index.html", *names)]
    index = Elements((files / "boards" / "index.html").read_text(encoding="utf-8"))
    assert [value for tag, name, value in index.attributes if (tag, name) == ("a", "href")] == names
    assert index.rows[3] == [f"digits {LINF} 8/255", "tiny, version 1", "3", "10", "TRADES, AA 40.0"]
    assert [row[-1] for row in index.rows[1:3]] == [
        # A line each: the sets of images differ.
        "CIFAR-10-C, 10 samples: AT, Avg Acc 2 47.5digits-C-gen1 (generated), 10 samples: AT, Avg Acc 2 47.5",
        "TRADES, FDR ↓ clean 0.1",
    ]
    corruptions, *_, other = ((files / "boards" / name).read_text(encoding="utf-8") for name in names)
    assert corruptions.count("<section") == 2  # generated images have a table of their own
    assert other == FORMS[".html"](board_data([read_result(files / "runs" / "3.h5")]))


def test_results_of_one_page_that_do_not_compare_are_sections_of_it(tmp_path: Path) -> None:
    fewer = replace(probed(), index=probed().index + 1)
    assert page_name(fewer) == page_name(probed())
    index, page = write_folder([probed(), fewer], tmp_path)
    assert page.read_text(encoding="utf-8").count("<section") == 2
    assert "10/10" in index.read_text(encoding="utf-8")


def test_the_index_takes_no_best_over_boards_that_do_not_compare(tmp_path: Path) -> None:
    few = with_run(single(True), model="Lucky", evaluation={"probes": 64})
    suite = {**SUITE, "derived": []}
    index, _ = write_folder([replace(few, suite=suite), probed(suite=suite)], tmp_path)
    # One right sample is 100 %, and says less than 30 % of ten.
    lines = ["no attack, 1 samples: Lucky, Clean 100.0", f"{LINF} 8/255, 10 samples: AT, AA 30.0"]
    assert f"<td>{'<br>'.join(lines)}</td>" in index.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("runs", "--out", "empty"), "add --folder"),
        (("runs", "--folder", "--out", "runs/0.h5"), "Name a folder"),
        (("runs", "--folder", "--out", "board.html"), "leave --folder out"),
        (("runs", "--folder"), "--folder needs a folder"),
        (("runs", "--out", "runs/0.h5/board.html"), "writable folder"),
        (("empty", "--out", "board.pdf"), "no result file in"),
        (("nowhere", "--out", "board.html"), "Give a result file."),
        (("runs",), "--out board.html"),
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
