"""What the documents show is what there is."""

import re
import shlex
import shutil
from pathlib import Path

import click
import pytest

from bench import registry
from bench.cli import group

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def commands():
    for page in PAGES:
        for block in re.findall(r"```\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.splitlines():
                line = line.partition("  #")[0].strip()
                if line.startswith("bench "):
                    yield pytest.param(line, id=f"{page.stem}: {line}")


@pytest.mark.parametrize("line", list(commands()))
def test_a_documented_command_parses(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_plugins", {})
    shutil.copy(ROOT / "examples" / "clean_and_adversarial.py", tmp_path / "my_defense.py")
    _, name, *arguments = shlex.split(line, comments=True)
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert command.make_context(name, arguments).params is not None


def test_the_defense_in_contributing_is_the_example_that_is_tested():
    example = (ROOT / "examples" / "clean_and_adversarial.py").read_text(encoding="utf-8")
    assert f"```python\n{example}```" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_tree_in_the_readme_names_files_that_exist():
    tree = re.search(r"## The tree\n\n```\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    folder = None
    for line in tree.splitlines():
        names = line.partition("  ")[0] if not line.startswith(" ") else re.split(r"\s{2,}", line.strip())[0]
        if not line.startswith(" "):
            folder = ROOT / names
            assert folder.is_dir(), names
        else:
            for name in names.split(", "):
                assert (folder / name).exists(), name


def test_every_file_of_the_harness_is_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [path.name for path in (ROOT / "bench").glob("*.py") if path.name not in text and path.name[0] != "_"]
    assert missing == []
