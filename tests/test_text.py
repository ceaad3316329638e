"""What a file calls itself acts on no terminal, page, spreadsheet or Markdown, and every refusal is one line."""

import ast
import errno
import html
import os
import re
import subprocess
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from bench.cli import LazyGroup, echo
from bench.errors import BenchError, system_refusal
from bench.interop.model_cards import card
from bench.launching import program
from bench.leaderboard.render.rebuilding import shown_columns
from bench.models.checkpoints import Checkpoint, load_checkpoint
from bench.results.file import write_result
from bench.system.progress import TrainingProgress
from bench.text import cell, escape, one_line, printable, uncut
from tests import ROOT
from tests.support.command import bench, refused
from tests.support.example_results import example, with_run

HOSTILE = "a\x1b]0;x\x07\x9b2J\u202e\r\nb\ud800"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see https://a.b/c", "see https:<!-- -->//a.b/c"),
        ("FTP://a", "FTP:<!-- -->//a"),
        ("www.a.b", "www<!-- -->.a.b"),
        ("by @someone", "by @<!-- -->someone"),
        ("a@b.org", "a@<!-- -->b.org"),
        ("pgd@0.3", "pgd@<!-- -->0.3"),
        ("<img src=x>", "&#60;img src=x&#62;"),
        ("[x](javascript:1)", "&#91;x&#93;(javascript:1)"),
        # What GitHub makes nothing of stays as it is.
        ("pgd@2/255", "pgd@2/255"),
        ("a: b // c", "a: b // c"),
        ("wwwx", "wwwx"),
        ("0.15", "0.15"),
        ("12. x", "&#49;2. x"),
        ("1.", "&#49;."),
    ],
)
def test_markdown_makes_no_link_mention_or_element_of_text(text, expected):
    assert escape(text) == expected
    assert html.unescape(uncut(escape(text))) == text
    assert shown_columns(f"| Rank | Model | Trust | {escape(text)} |\n") == [text]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_no_cell_of_a_spreadsheet_begins_a_formula(start):
    for text in (f"{start}1", f"\t{start}1", f"\r\n {start}1", f"\x00{start}1"):
        assert cell(text) == f"'{start}1"
    assert (cell(-1.5), cell(None), cell("a=1")) == (-1.5, None, "a=1")


def test_a_terminal_is_told_nothing_by_text():
    assert one_line(HOSTILE) == "a ]0;x 2J b"
    assert printable(HOSTILE) == "a ]0;x  2J  \nb "
    assert printable("  é ✓ ±\t|\n") == "  é ✓ ±\t|\n"


def test_everything_that_is_printed_goes_through_one_place():
    found = set()
    for path in sorted((ROOT / "bench").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("click.echo", "click.secho", "print"):
                found.add((path.relative_to(ROOT).as_posix(), ast.unparse(node)))
    assert {name for name, _ in found} == {"bench/cli/__init__.py", "bench/system/progress.py", "bench/worker.py"}
    assert all("printable(" in call for name, call in found if name != "bench/worker.py"), found


def test_marks_keep_their_colours_and_nothing_else_does(capsys):
    @click.command()
    def command():
        echo(HOSTILE, mark=f"✓{HOSTILE}", fg="red")

    shown = CliRunner().invoke(command, color=True).output
    assert shown.count("\x1b") == 2 and not CONTROL.search(shown.replace("\x1b[31m", "").replace("\x1b[0m", ""))
    progress = TrainingProgress(quiet=False)
    progress.say(HOSTILE)
    assert not CONTROL.search(capsys.readouterr().err)


def test_refusals_of_ours_and_of_clicks_are_one_clean_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (
        ["trust", f"{HOSTILE[:-1]}.h5"],
        ["train", "--defense", "a\x1b[31m\nb"],
        ["eval", "--model", "\x9b2J\n"],
    ):
        assert not CONTROL.search(refused(*words))
    ours = "\x1b[31m\n"
    for words in ([f"{ours}x"], ["eval", f"--{ours}x"], ["list", ours], ["eval", "--limit", ours]):
        code, output = bench(*words)
        assert code == 2 and not CONTROL.search(output), output
        assert output.splitlines()[-1].startswith("Error: "), output


def test_a_board_of_hostile_names_in_every_form(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "\uff1dx \x1b[31m<b> https://a.b @c"
    suite = {**example().suite, "derived": [{"label": "12. https://a.b @c|<b>", "worst_of": ["AA"]}]}
    write_result(with_run(example(suite=suite), model=name, dataset=name), "r.h5")
    for form in (".md", ".csv", ".html", ".json"):
        code, output = bench("leaderboard", "r.h5", "--out", f"b{form}")
        assert code == 0, output
        text = Path(f"b{form}").read_text(encoding="utf-8")
        assert not CONTROL.search(text) and not CONTROL.search(output)
        assert {
            ".md": "\uff1dx &#91;31m&#60;b&#62; https:<!-- -->//a.b @<!-- -->c",
            ".csv": "'\uff1dx [31m<b> https://a.b @c",
            ".html": "\uff1dx [31m&lt;b&gt; https://a.b @c",
            ".json": "\\uff1dx [31m<b> https://a.b @c",
        }[form] in text
    assert bench("verify", "r.h5", "--board", "b.md")[1].count("rows of b.md, computed again from 1 files") == 1


def test_a_card_of_hostile_names(digits_run):
    config = dict(load_checkpoint(digits_run).config)
    name = "x|\n# <b>\x1b [y](z) https://a.b @c ---"
    config |= {"backbone": name, "dataset": {**config["dataset"], "name": name}}
    config |= {"protocol": {**config["protocol"], name: [name, 1]}, "hyperparameters": {name: {name: name}}}
    text = card(Checkpoint(config, {})).partition("\n---\n")[2]
    shown = escape(name)
    assert text.startswith(f"\n# at, {shown}, {shown}, seed 0\n")
    assert f"| {shown} | {shown}, 1 |" in text and f"| at: {shown} | " in text
    rest = text.replace(shown, "")
    assert "<b>" not in rest and "@c" not in rest and not CONTROL.search(rest)


def failing(error):
    """What a person sees of a command that ends with this exception, in lines."""
    group = LazyGroup("bench")
    group.get_command = lambda context, name: click.Command("x", callback=lambda: (_ for _ in ()).throw(error))
    group.list_commands = lambda context: ["x"]
    outcome = CliRunner().invoke(group, ["x"])
    return outcome.exit_code, re.sub(r" \(test_text.py:\d+\)", "", outcome.output), outcome.exception


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 240), "the system refuses 'xxx"),
        (PermissionError(errno.EROFS, "Read-only file system", "/r/logs"), "Read-only file system. Give a path"),
        (OSError(errno.ENOSPC, "No space left on device"), "the system refuses: No space left on device. Free some"),
        (OSError("no number"), "the system refuses: OSError: no number. Look at it"),
        (MemoryError(), "memory ran out (MemoryError)."),
        (torch.OutOfMemoryError("CUDA out of memory"), "memory ran out (OutOfMemoryError: CUDA out of memory)."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory ran out (RuntimeError: Default"),
        (UnicodeEncodeError("latin-1", "✓", 0, 1, "no"), "a text is not of its encoding (UnicodeEncodeError"),
        (BenchError("two\nlines\x1b"), "two lines"),
    ],
)
def test_what_the_system_refuses_is_one_line(error, expected):
    code, output, _ = failing(error)
    assert code == 2 and output.startswith("Error: ") and output.count("\n") == 1
    assert expected in output


def test_faults_of_ours_are_no_refusals_and_a_reader_that_has_gone_is_no_fault():
    assert isinstance(failing(RuntimeError("shapes"))[2], RuntimeError)
    assert system_refusal(KeyError("x")) is None
    code, output, _ = failing(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert (code, output) == (1, "")


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "LONG", "--suite", "clean"],
        ["eval", "--model", "LONG.py:make", "--dataset", "digits"],
        ["eval", "RUN", "--suite", "LONG.json"],
        ["eval", "RUN", "--suite", "clean", "--limit", "5", "--out", "LONG.h5"],
        ["train", "--defense", "st", "--dataset", "npz:LONG.npz"],
        ["train", "--defense", "st", "--dataset", "digits", "--epochs", "1", "--limit-train", "64", "--out", "LONG"],
        ["list", "--plugin", "LONG.py"],
        ["leaderboard", "LONG.h5"],
        ["leaderboard", "r.h5", "--out", "LONG.md"],
        ["verify", "LONG.h5"],
        ["data", "corrupt", "--dataset", "digits", "--limit", "2", "--corruptions", "fog", "--out", "LONG"],
        ["figure", "training", "LONG", "--out", "f"],
        ["export", "huggingface", "RUN", "LONG"],
    ],
    ids=" ".join,
)
def test_a_name_of_too_many_letters_is_one_line(words, tmp_path, monkeypatch, digits_run):
    monkeypatch.chdir(tmp_path)
    write_result(example(), "r.h5")
    names = {"RUN": str(digits_run)}
    assert refused(*[names.get(word, word.replace("LONG", "x" * 300)) for word in words])


def test_a_terminal_of_few_characters_gets_others_as_escapes(tmp_path):
    write_result(with_run(example(), model="é±\udcff"), tmp_path / "r.h5")
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "OMP_NUM_THREADS": "1"}
    command = [*program(), "trust", str(tmp_path / "r.h5")]
    process = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert process.returncode in (0, 1) and b"Traceback" not in process.stderr, process.stderr
    assert b"\\u2713" in process.stdout  # the check mark
