"""Whose module a name is: a person's within a person's files, ours within ours, and the current folder's nowhere."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import find_packages
from setuptools.dist import Distribution

from bench.catalogue import neighbours
from bench.catalogue import plugins as registry
from bench.errors import BenchError
from bench.launching import program
from tests import ROOT

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
NET = "from torch import nn\n\nclass Net(nn.Module):\n    ...\n"


def write(folder, files):
    """Files by name, in a folder that need not be there."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def python(code, *arguments, cwd=ROOT):
    """What a new process prints that runs this code."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(autouse=True)
def nothing_was_loaded(monkeypatch):
    """No file of another test counts, and what a test loads is forgotten."""
    monkeypatch.setattr(sys, "meta_path", [one for one in sys.meta_path if not isinstance(one, neighbours.Finder)])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if neighbours.may_lie_beside(name.partition(".")[0]):
            del sys.modules[name]


# ------------------------------------------------------------------------------------------ a person's own files

MODEL = """
import torch
from attacks import pgd                   # a module that is called as ours was
from defenses.mine import name            # a package of that kind, without __init__.py
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        import within_the_factory
        self.linear = nn.Linear(64, 10)
        self.names = [pgd(), name, within_the_factory.name]

    def forward(self, images):
        import within_forward
        self.names.append(within_forward.name)
        return self.linear(images.flatten(1))
"""
THEIRS = {
    "model.py": MODEL,
    "attacks.py": "def pgd():\n    return 'their attacks'\n",
    "defenses/mine.py": "name = 'their defenses'\n",
    "within_the_factory.py": "name = 'in the factory'\n",
    "within_forward.py": "name = 'in forward'\n",
    "click.py": "1 / 0",
    "h5py.py": "1 / 0",
}
USES = """
import sys
from pathlib import Path
import torch
from bench import cli
from bench.catalogue import plugins as registry
from bench.interop.subjects import ModelReference

subject = ModelReference(model=sys.argv[1] + "/model.py:Model").load(torch.device("cpu"), None)
subject.model(torch.zeros(1, 1, 8, 8))
print(subject.model.names)
import attacks, bench.attacks, bench.system.sealed, h5py
print(attacks.__file__, bench.attacks.__file__ == attacks.__file__)
print(len(registry.names("attack")), registry.find("attack", "fgsm").__module__, hasattr(h5py, "File"))
"""


def test_a_persons_modules_are_theirs_wherever_they_are_imported_and_ours_stay_ours(tmp_path):
    names, modules, ours = python(USES, write(tmp_path, THEIRS)).splitlines()
    assert ast.literal_eval(names) == ["their attacks", "their defenses", "in the factory", "in forward"]
    assert modules == f"{tmp_path / 'attacks.py'} False"
    assert ours == f"{len(registry.names('attack'))} bench.attacks.fgsm True"


FORMER = """
import warnings
from dataclasses import dataclass
from bench.interfaces import Attack

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from attacks import craft
    from attacks.pgd import PGD
    import leaderboard.wording

@dataclass(frozen=True)
class Former(Attack):
    paper = "none"

    def perturb(self, problem):
        return problem.images
"""
SAME = """
import sys
from pathlib import Path
from bench import attacks, leaderboard
from bench.catalogue import plugins as registry
from bench.attacks import pgd

registry.add_plugin(Path(sys.argv[1]))
module = sys.modules[registry.find("attack", "former").__module__]
print(module.craft is attacks.craft, module.PGD is pgd.PGD, module.leaderboard.wording is leaderboard.wording)
for warning in module.caught:
    print(warning.category.__name__, Path(warning.filename).name, warning.message)
"""


def test_the_names_of_version_0_1_mean_the_same_classes_for_a_while(tmp_path):
    write(tmp_path, {"attacks/a folder without code.txt": "", "former.py": FORMER})
    same, *warned = python(SAME, tmp_path / "former.py").splitlines()
    assert same == "True True True"
    assert warned == [
        f"DeprecationWarning former.py `{name}` is called `bench.{name}` now; the former name goes with version 0.3."
        for name in ("attacks", "attacks.pgd", "leaderboard", "leaderboard.wording")
    ]


def test_a_plugin_in_a_checkout_shares_the_checkouts_classes(tmp_path):
    (tmp_path / "former.py").write_text(FORMER)
    for name in ("attacks", "defenses", "leaderboard"):
        (tmp_path / name).symlink_to(ROOT / name)
    assert python(SAME, tmp_path / "former.py", cwd=tmp_path).splitlines()[0] == "True True True"
    assert neighbours.imported_beside(tmp_path / "former.py").keys() == {tmp_path / "former.py"}


@pytest.mark.parametrize(
    ("first", "second", "taken"),
    [
        ({"a.py": "import mynets", "mynets.py": "1"}, {"b.py": "import mynets", "mynets.py": "2"}, "first/mynets.py"),
        # Imported later, when what lies beside the second file is known as well.
        (
            {"a.py": "def make():\n    import mynets", "mynets.py": "1"},
            {"b.py": "def make():\n    import mynets", "mynets/__init__.py": "1"},
            "first/mynets.py",
        ),
        (
            {"a.py": "import mynets.one", "mynets/one.py": "1", "mynets/__init__.py": ""},
            {"b.py": "import mynets.one", "mynets/one.py": "2", "mynets/__init__.py": ""},
            "first/mynets/__init__.py",
        ),
        # One of the two means a package that is installed, or would be told that there is none.
        ({"a.py": "1", "mynets.py": "1"}, {"b.py": "import mynets"}, "first/mynets.py"),
        ({"a.py": "def f():\n    import mynets"}, {"b.py": "1", "mynets.py": "1"}, "second/mynets.py"),
        # By way of a neighbour.
        (
            {"a.py": "import mysteps", "mysteps.py": "import mynets", "mynets.py": "1"},
            {"b.py": "import mynets", "mynets.py": "2"},
            "first/mynets.py",
        ),
    ],
)
def test_a_file_that_would_be_given_another_folders_module_is_refused(first, second, taken, tmp_path):
    write(tmp_path / "first", first), write(tmp_path / "second", second)
    neighbours.search_beside(tmp_path / "first" / "a.py")
    message = f"imports 'mynets', which is {tmp_path / taken} in this process. Rename one of the two."
    with pytest.raises(BenchError, match=re.escape(message)):
        registry.load_python_file(tmp_path / "second" / "b.py")


def test_copies_of_a_folder_are_one_module(tmp_path):
    for name in ("first", "second"):
        folder = write(tmp_path / name, {"a.py": "from mynets import value", "mynets.py": "value = [1]"})
        assert registry.load_python_file(folder / "a.py").value == [1]


def test_a_neighbour_named_like_a_package_in_use_is_refused_and_a_folder_of_that_name_is_not_it(tmp_path):
    folder = write(tmp_path, {"a.py": "import pytest", "pytest.py": "", "b.py": "import networkx", "networkx/x.py": ""})
    message = f"a.py imports {folder / 'pytest.py'}, but 'pytest' is {Path(pytest.__file__).resolve()} in this process."
    with pytest.raises(BenchError, match=re.escape(message)):
        registry.load_python_file(folder / "a.py")
    assert registry.load_python_file(folder / "b.py").networkx.__file__ is not None


def test_two_files_of_one_name_are_two_modules(tmp_path):
    attack = "from bench.interfaces import Attack\nclass Mine(Attack):\n    def perturb(self, problem): ...\n"
    defense = "from bench.interfaces import Defense\nclass Mine(Defense):\n    def losses(self, *given): ...\n"
    write(tmp_path, {"one/mine.py": attack, "two/mine.py": defense})
    assert [registry.add_plugin(tmp_path / name / "mine.py") for name in ("one", "two")] == ["mine", "mine"]
    assert registry.plugin_files() == [tmp_path / "one" / "mine.py", tmp_path / "two" / "mine.py"]


def test_what_the_harness_imports_never_lies_beside_a_file():
    imported = set()
    for folder in ("attacks", "bench", "defenses", "leaderboard"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
                imported |= {name.partition(".")[0] for name in names}
    assert {"click", "torch", "json", "bench"} <= imported
    assert not {name for name in imported if neighbours.may_lie_beside(name)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for extra in ("tensorboard", "ray", "slurm") for name in project["optional-dependencies"][extra]]
    required = {re.match("[a-z0-9-]+", text)[0] for text in [*project["dependencies"], *extras]}
    assert {{"pillow": "PIL", "scikit-learn": "sklearn"}.get(name, name) for name in required} <= neighbours.NEVER


# ------------------------------------------------------------------------------------------- the current folder

MARK = "import pathlib\nwith (pathlib.Path(__file__).parent / 'executed').open('a') as f:\n    f.write(__file__)\n"
NAMES = (
    *("click", "torch", "numpy", "h5py", "attacks", "leaderboard", "robustbench", "autoattack", "scipy", "tqdm"),
    *(
        "json",
        "shlex",
        "subprocess",
        "logging",
        "random",
        "multiprocessing",
        "pickle",
        "fcntl",
        "platform",
        "threading",
    ),
)
START = [sys.executable, "-c", "import sys; del sys.path[0]; from bench.cli import main; main()"]
"""As the script `bench` that an installation writes: Python puts its folder on the path, not the current one."""


@pytest.fixture
def hostile(tmp_path):
    """A folder whose modules, named as what we import, leave a mark if any of them is executed."""
    files = {f"{name}.py": MARK for name in NAMES} | {"defenses/__init__.py": MARK, "bench.py": MARK}
    yield write(tmp_path / "theirs", files)
    assert not list((tmp_path / "theirs").rglob("executed"))


# A sweep starts trainings and evaluations; that processes which share one start by `program` too is held by
# tests/evaluation/test_sharing.py. Corruptions are spread by multiprocessing.
@pytest.mark.parametrize(
    "words",
    [
        "sweep --dataset digits --defenses st --epochs 1 --limit-train 64 --suite clean --limit 20 --jobs 2",
        "data corrupt --dataset digits --out C --limit 4 --corruptions fog --processes 2",
    ],
    ids=["sweep", "corrupt"],
)
def test_no_command_and_no_process_it_starts_executes_what_lies_in_the_current_folder(words, hostile):
    if "corrupt" in words and sys.version_info < (3, 11):
        (hostile / "multiprocessing.py").unlink()  # as bench.launching says
    command = [*START, *words.split()]
    process = subprocess.run(command, cwd=hostile, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("start", ["module", "file"])
def test_python_m_bench_executes_nothing_either_but_a_bench_that_lies_there(start, hostile):
    command = program() if start == "file" else [sys.executable, "-m", "bench"]
    if start == "module":
        (hostile / "bench.py").unlink()
    command += ["list", "defenses"]
    process = subprocess.run(command, cwd=hostile, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "adv-dpnp" in process.stdout


def test_this_program_starts_itself_from_its_own_files_whatever_is_installed(tmp_path):
    write(tmp_path, {"bench/__init__.py": "1 / 0"})
    environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path)}
    command = [*program(), "--version"]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert process.stdout.startswith("bench, version "), process.stderr


# --------------------------------------------------------------------------------------------------- the wheel


def test_the_wheel_holds_bench_alone_with_its_data():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = find_packages(str(ROOT), include=settings["packages"]["find"]["include"])
    assert {name.partition(".")[0] for name in packages} == {"bench"}
    assert {"bench.attacks", "bench.defenses", "bench.leaderboard", "bench.cli", "bench.experiments.executors"} <= {
        *packages
    }
    build = Distribution({"packages": packages, "package_data": settings["package-data"], "name": "advbench"})
    build.src_root = str(ROOT)
    command = build.get_command_obj("build_py")
    command.ensure_finalized()
    found = [Path(folder, name) for _, folder, _, names in command.data_files for name in names]
    shipped = {path.relative_to(ROOT).as_posix() for path in found}
    for folder in (
        "bench/catalogue/suites",
        "bench/experiments/plans",
        "bench/leaderboard/render/page",
        "bench/leaderboard/published",
    ):
        assert {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).iterdir()} <= shipped
    assert {"bench/experiments/paper.json", "bench/results/FORMAT.md"} <= shipped
    assert not [name for name in shipped if re.search("boards|checkpoints|benchmarks|tests|[.]h5|safetensors", name)]


def test_the_folders_in_bench_are_links_to_those_at_the_top():
    for name in neighbours.FORMER:
        assert (ROOT / "bench" / name).readlink() == Path("..", name)
        assert (ROOT / "bench" / name).resolve() == ROOT / name
