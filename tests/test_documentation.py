"""What the documents show is what there is: blocks run, links lead somewhere, tables are the code's."""

import functools
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import click
import pytest

from bench.attacks import autoattack
from bench.catalogue.plugins import load_python_file
from bench.cli import group
from bench.evaluation import evaluate as evaluation
from bench.experiments import paper
from tests import ROOT
from tests.support import command
from tests.support.few_digits import few_digits

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "bench" / "results" / "FORMAT.md"])
MARK = re.compile(r"#.*\b(needs a GPU|needs a cluster|downloads|takes minutes|takes hours)\b")
EXAMPLES = {
    "add_a_defense.py": ["--epochs", "1", "--limit", "20", "--suite", "quick"],
    "evaluate_my_model.py": ["--steps", "100", "--limit", "20"],
}
"""Scripts of the folder that a person runs, and the arguments that make them small."""
SHOWN = ("clean_and_adversarial.py", "remembered_start.py", "two_convolutions.py", "mixup.py")
"""Plug-ins that CONTRIBUTING.md shows in full."""


def blocks(page):
    """Language and text of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(text):
    """Every command of a block, and whether it carries a mark; a comment alone marks all below it."""
    below = False
    for line in text.splitlines():
        marked = bool(MARK.search(line))
        if line.startswith("#"):
            below |= marked
        elif line.strip():
            yield re.sub(r"\s+#.*", "", line).strip(), below or marked


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def documented():
    for page in PAGES:
        for language, text in blocks(page):
            for line, _ in commands(text) if language == "bash" else []:
                if line.startswith("bench "):
                    yield pytest.param(line, id=f"{name_of(page)}: {line}")


@pytest.mark.parametrize("line", list(documented()))
def test_a_documented_command_parses(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    shutil.copy(ROOT / "examples" / "clean_and_adversarial.py", tmp_path / "my_defense.py")
    _, name, *arguments = shlex.split(line)
    found = group.get_command(click.Context(group), name)
    assert found is not None
    assert found.make_context(name, arguments).params is not None


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Runs a line in a folder with the checkout's examples and boards, on few digits, with short attacks and probes."""
    standard, probed = autoattack.standard, evaluation.probed

    def short(norm):
        return tuple(
            replace(attack, **({"queries": 20} if hasattr(attack, "queries") else {"steps": 2}))
            for attack in standard(norm)
        )

    def brief(prepared, *others):
        return probed(replace(prepared, request=replace(prepared.request, probes=2)), *others)

    for folder in ("examples", "leaderboard"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(autoattack, "standard", short)
    monkeypatch.setattr(evaluation, "probed", brief)
    smoke = replace(paper.SCALES["smoke"], protocol={"epochs": 1}, limit=4)
    monkeypatch.setattr(paper, "SCALES", {**paper.SCALES, "smoke": smoke})

    def run(line):
        words = [match for word in shlex.split(line) for match in expanded(word)]
        if words[0] == "bench" and "leaderboard/boards" in line:
            return of_committed_files(*words[1:])
        with monkeypatch.context() as patch:
            few_digits(patch, tmp_path, train=128, test=20)
            if words[0] == "bench":
                return bench_command(*words[1:])
            if words[0] == "cp":
                return shutil.copy(*words[1:])
            assert words[0] == "python" and Path(words[1]).name in EXAMPLES, f"{line!r} is neither run here nor marked"
            return load_python_file(ROOT / words[1]).main(EXAMPLES[Path(words[1]).name], standalone_mode=False)

    return run


def expanded(word):
    return sorted(map(str, Path().glob(word))) or [word] if "*" in word else [word]


def bench_command(*words):
    if words[0] in ("train", "sweep"):
        words = (*words, "--epochs", "1")
    code, output = command.bench(*words)
    # A model of one epoch deserves its errors.
    assert code in ((0, 1) if words[0] == "trust" else (0,)), f"{words}: {output}"


@functools.cache
def of_committed_files(*words):
    """A command that reads what is in the repository, and all of the digits: once is enough, whatever page shows it."""
    bench_command(*words)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_of_a_page_runs_or_is_marked(page, tiny):
    for language, text in blocks(page):
        assert language in ("bash", "python", "text"), f"say what this block is:\n{text}"
        if language == "bash":
            for line, marked in commands(text):
                if not marked and line != "python -m docs.build":  # its pages are compared below
                    tiny(line)
        # Dialogues are run by tests/test_face.py.
        elif language == "python" and not text.startswith(">>>") and not MARK.search(text.partition("\n")[0]):
            exec(compile(text, name_of(page), "exec"), {"__name__": "documented"})


def test_every_example_is_documented():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert scripts == {*EXAMPLES, *SHOWN, "growing_radius.py"}
    assert all(f"python examples/{name}" in readme for name in EXAMPLES)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("add_a_defense.py", ["clean-and-adversarial against at", "$ bench compare", "In the column "]),
        ("evaluate_my_model.py", ["PGD-20, linf 0.15: ", "bench trust example-runs/mine.h5"]),
    ],
)
def test_an_example_says_what_it_did(name, lines, tiny, capsys):
    tiny(f"python examples/{name}")
    shown = capsys.readouterr().out
    assert [line for line in lines if line not in shown] == []
    assert (ROOT / "examples" / name).read_text(encoding="utf-8").endswith('if __name__ == "__main__":\n    main()\n')


@pytest.fixture(scope="module")
def built():
    """The script that writes pages."""
    return load_python_file(ROOT / "docs" / "build.py").pages()


def test_generated_pages_are_what_the_code_says(built):
    old = [name_of(path) for path, text in built.items() if path.read_text(encoding="utf-8") != text]
    assert old == [], "run: python -m docs.build"
    assert {path for path in built if path.parent.name == "defenses"} == set((ROOT / "docs" / "defenses").glob("*"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page):
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in target]
    assert [target for target in targets if not (page.parent / target.partition("#")[0]).exists()] == []


@pytest.mark.parametrize("name", [*SHOWN, "averaged.json"])
def test_what_contributing_shows_is_the_example_that_is_run(name):
    example, language = (
        (ROOT / "examples" / name).read_text(encoding="utf-8"),
        "python" if name[-3:] == ".py" else "text",
    )
    assert f"```{language}\n{example}```" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_architecture_names_files_that_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:attacks|bench|benchmarks|defenses|docs|leaderboard|tests)/[^`\s]*)`", text))
    assert len(named) > 50
    assert [name for name in sorted(named) if not list(ROOT.glob(name))] == []
