"""Tables as wide as the terminal, in colour on one, and Markdown elsewhere."""

import os
import re
import sys
import threading
from contextlib import suppress

import pytest

from bench.cli import group
from bench.results.file import write_result
from tests.support.example_results import probed, with_run


@pytest.fixture
def files(tmp_path):
    """Two results of seven columns."""
    for name in ("A", "B"):
        write_result(with_run(probed(), model=name), tmp_path / f"{name}.h5")
    return [tmp_path / "A.h5", tmp_path / "B.h5"]


def test_tables_are_plain_where_they_are_asked_to_be(bench, monkeypatch, files):
    shown = {}
    for width in (80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        code, shown[width] = bench("leaderboard", *files, "--format", "plain")
        assert code == 0 and max(map(len, shown[width].splitlines())) <= width and "|" not in shown[width]
        code, text = bench("compare", *files, "--format", "plain")
        assert code == 0 and max(map(len, text.splitlines())) <= width and text.startswith("In the column AA, A and B")
    # Rank, Model, Trust, Clean as 80.0 (49.0 to 94.3), and AA take 4 + 5 + 5 + 19 + 11 and four gaps of 2: 52. The
    # worst case takes 18 + 2 more, each of the four others 11 + 2.
    assert ("\n+4 more columns: " in shown[80], "\n+1 more column: " in shown[120]) == (True, True)
    assert bench("leaderboard", *files)[1] == bench("leaderboard", *files, "--format", "markdown")[1]
    code, output = bench("leaderboard", *files, "--folder", "--out", "pages", "--format", "plain")
    assert (code, "--folder prints no table" in output) == (2, True)


def on_a_terminal(monkeypatch, *words):
    """What `bench WORDS` prints on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    ours, theirs = os.openpty()
    read = []

    def listen():
        try:
            while piece := os.read(ours, 4096):
                read.append(piece)
        except OSError:  # the other end was closed
            pass

    listening = threading.Thread(target=listen)
    listening.start()
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        with suppress(SystemExit):
            group.main([str(word) for word in words], prog_name="bench", standalone_mode=False)
    listening.join()
    os.close(ours)
    return b"".join(read).decode().replace("\r\n", "\n")


def test_a_terminal_gets_plain_text_and_colours(monkeypatch, files):
    text = on_a_terminal(monkeypatch, "leaderboard", *files)
    assert "|" not in text and "\nRank  Model " in text
    assert on_a_terminal(monkeypatch, "leaderboard", *files, "--format", "markdown").startswith("## digits, ")
    first, *report = on_a_terminal(monkeypatch, "trust", files[0]).splitlines()
    assert max(len(re.sub(r"\x1b\[\d+m", "", line)) for line in report) <= 80
    assert re.fullmatch(r"(\x1b\[\d+m)+Trust: . [a-z ]+\x1b\[0m \([a-z0-9, ]+\)", first), first
