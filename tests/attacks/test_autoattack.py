"""AutoAttack beside a direct run of the published code, and the package under its original name and signature."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bench.attacks import autoattack
from bench.attacks.apgd import APGD
from bench.attacks.autoattack import AutoAttack
from bench.errors import BenchError
from bench.interfaces import Draws, Problem, ThreatModel
from bench.interop import autoattack as autoattack_package
from tests import ROOT

RADII = {"linf": "0.02", "l2": "0.1", "l1": "0.2"}
PUBLISHED = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@pytest.fixture(autouse=True)
def original_name(small_budget):
    autoattack_package.install()


def network(classes=10, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(128, classes)).eval()


def problem_of(model, norm="linf", count=24, epsilon=None, **options):
    images = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        # The plain logits of random weights would name one class for all images.
        centred = Centred(model, model(images).mean(0)) if count else model
        labels = centred(images).argmax(1)
    threat = ThreatModel(norm, epsilon or RADII[norm])
    return Problem(centred, images, labels, threat, Draws(0, "autoattack", np.arange(count)), **options)


class Centred(nn.Module):
    """Logits less their mean over the set."""

    def __init__(self, model, mean):
        super().__init__()
        self.model = model
        self.register_buffer("mean", mean)

    def forward(self, images):
        return self.model(images) - self.mean


def robust(problem, perturbed):
    with torch.no_grad():
        return (problem.model(perturbed).argmax(1) == problem.labels).tolist()


def direct_run(problem, seed, targets=None, **chosen):
    from pyautoattack import AutoAttack as Published

    options = {"norm": PUBLISHED[problem.threat.norm], "eps": problem.threat.radius, "seed": seed}
    adversary = Published(problem.model, **{"version": "standard", **options, **chosen})
    if targets:
        adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = targets
    with torch.random.fork_rng():
        return adversary.run_standard_evaluation(problem.images, problem.labels, batch_size=500)[0]


@pytest.mark.parametrize(("norm", "seed"), [("linf", 0), ("linf", 5), ("l2", 0), ("l1", 0)])
def test_images_equal_those_of_a_direct_run(norm, seed):
    problem = problem_of(network(), norm)
    perturbed = AutoAttack(implementation="reference", seed=seed).perturb(problem)
    assert torch.equal(perturbed, direct_run(problem, seed))
    assert 2 < sum(robust(problem, perturbed)) < 22
    assert (problem.threat.distance(perturbed, problem.images) <= problem.threat.radius + 1e-5).all()


@pytest.fixture
def brief(monkeypatch):
    """Gives our own cascade a fraction of its steps: of APGD-CE, APGD-T, FAB and Square."""
    whole = autoattack.standard

    def shorten(*steps):
        budgets = [{"steps": count} for count in steps[:3]] + [{"queries": steps[3]}]
        monkeypatch.setattr(
            autoattack,
            "standard",
            lambda norm: tuple(replace(part, **few) for part, few in zip(whole(norm), budgets, strict=True)),
        )

    return shorten


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_our_own_parts_leave_the_same_robust_set_as_the_published_package(norm, brief):
    brief(25, 20, 15, 300)
    problem = problem_of(network(), norm)
    own = AutoAttack().perturb(problem)
    standing = robust(problem, own)
    assert standing == robust(problem, direct_run(problem, 0))
    assert 2 < sum(standing) < 22
    assert (problem.notes["stage"] == 0).tolist() == standing
    assert set(problem.notes["stage"].tolist()) <= {0, 1, 2, 3, 4}
    assert torch.equal(own[problem.notes["stage"] == 0], problem.images[problem.notes["stage"] == 0])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_apgd_breaks_what_the_first_two_attacks_of_autoattack_break(norm, brief):
    brief(12, 12, 1, 1)
    problem, whole = problem_of(network(), norm), problem_of(network(), norm)
    images, all_images = APGD().perturb(problem), AutoAttack().perturb(whole)
    stage = whole.notes["stage"]
    assert torch.equal(problem.notes["stage"], torch.where(stage <= 2, stage, 0))
    broken = problem.notes["stage"] > 0
    assert 2 < broken.sum() < 22
    assert torch.equal(images, torch.where(broken[:, None, None, None], all_images, problem.images))


def test_our_own_parts_do_not_depend_on_the_batch(brief):
    brief(8, 6, 5, 60)
    problem = problem_of(network())
    whole = AutoAttack().perturb(problem)
    rows = np.array([17, 3, 8])
    draws = Draws(problem.draws.seed, problem.draws.stream, problem.draws.indices[rows])
    part = Problem(problem.model, problem.images[rows], problem.labels[rows], problem.threat, draws)
    assert robust(part, AutoAttack().perturb(part)) == [robust(problem, whole)[row] for row in rows]


@pytest.mark.parametrize("classes", [4, 7])
def test_with_few_classes_every_rival_is_a_target_once(classes):
    problem = problem_of(network(classes))
    perturbed = AutoAttack(implementation="reference").perturb(problem)
    assert torch.equal(perturbed, direct_run(problem, 0, targets=classes - 1))
    assert 2 < sum(robust(problem, perturbed)) < 22


def test_one_image_alone_is_attacked():
    problem = problem_of(network(), epsilon="0.9", count=2)
    alone = Problem(problem.model, problem.images[:1], problem.labels[:1], problem.threat, problem.draws)
    assert robust(alone, AutoAttack(implementation="reference").perturb(alone)) == [False]


@pytest.mark.parametrize(("count", "epsilon"), [(0, "0.1"), (5, "0")])
def test_with_nothing_to_attack_the_images_come_back(count, epsilon):
    problem = problem_of(network(), count=count, epsilon=epsilon)
    assert torch.equal(AutoAttack(implementation="reference").perturb(problem), problem.images)


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (AutoAttack(implementation="reference"), "autoattack needs 4 .*has 3.*pgd"),
        (APGD(), "apgd needs 4 .*has 3.*pgd"),
    ],
)
def test_three_classes_and_an_objective_are_refused(attack, words):
    with pytest.raises(BenchError, match=words):
        attack.perturb(problem_of(network(3)))
    with pytest.raises(BenchError, match=r"brings its own losses .*pgd"):
        attack.perturb(problem_of(network(), objective=lambda model, images: images.flatten(1).sum(1)))


def test_a_missing_package_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, autoattack_package.Finder)])
    for name in [name for name in sys.modules if name.split(".")[0] == "autoattack"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(BenchError, match=r"not installed.*pip install pyautoattack"):
        AutoAttack(implementation="reference").perturb(problem_of(network()))


def test_nothing_in_the_process_or_the_model_is_left_changed():
    problem = problem_of(network())
    problem.model.model[0].bias.requires_grad_(False)
    trained = [parameter.requires_grad for parameter in problem.model.parameters()]
    state, tracer = torch.get_rng_state(), sys.gettrace()
    AutoAttack(implementation="reference").perturb(problem)
    assert torch.equal(torch.get_rng_state(), state)
    assert sys.gettrace() is tracer
    assert [parameter.requires_grad for parameter in problem.model.parameters()] == trained
    assert all(parameter.grad is None for parameter in problem.model.parameters())


def test_flags_are_noted_and_reach_nobody_else(capfd, caplog):
    logger = logging.getLogger("auto-attack")
    problem = problem_of(network())
    problem = replace(problem, model=nn.Sequential(problem.model, nn.Softmax(1)))
    AutoAttack(implementation="reference").perturb(problem)
    assert any("probability distribution" in line for line in problem.warnings)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert (logger.propagate, logger.handlers) == (True, [])


def test_one_dynamic_model_does_not_flag_the_next():
    class Dynamic(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images):
            def backward():
                return self.model(images)

            return backward()

    def flags(problem):
        AutoAttack(implementation="reference").perturb(problem)
        return [line for line in problem.warnings if "dynamic" in line]

    plain = problem_of(network())
    dynamic = replace(plain, model=Dynamic(plain.model), warnings=[])
    assert len(flags(dynamic)) == 1
    assert flags(plain) == []


# ------------------------------------------------------------------------ under the original's name


def test_the_original_signature_and_its_log(tmp_path, capsys):
    import autoattack

    problem = problem_of(network())
    log = tmp_path / "log.txt"
    adversary = autoattack.AutoAttack(
        problem.model, norm="Linf", eps=0.02, seed=0, version="standard", device=torch.device("cpu"), log_path=log
    )
    with torch.random.fork_rng():
        images = adversary.run_standard_evaluation(problem.images, problem.labels, bs=500, state_path=None)
        assert "robust accuracy after SQUARE" in capsys.readouterr().out
        images_again, labels = adversary.run_standard_evaluation(problem.images, problem.labels, 500, True)
    assert torch.equal(images, direct_run(problem, 0))
    assert torch.equal(images, images_again)
    assert torch.equal(labels, problem.model(images).argmax(1))
    assert "robust accuracy after SQUARE" in log.read_text()


def test_chosen_attacks_run_one_by_one(capsys):
    import autoattack

    problem = problem_of(network())
    options = {"norm": "Linf", "eps": 0.02, "seed": 0, "verbose": False, "device": "cpu"}
    with torch.random.fork_rng():
        chosen = autoattack.AutoAttack(
            problem.model, attacks_to_run=["apgd-ce", "square"], version="custom", **options
        ).run_standard_evaluation_individual(problem.images, problem.labels, bs=500)
    assert list(chosen) == ["apgd-ce", "square"]
    assert torch.equal(chosen["square"], direct_run(problem, 0, version="custom", attacks=["square"]))
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="custom"):
        autoattack.AutoAttack(problem.model, attacks_to_run=["square"], **options)
    with pytest.raises(NotImplementedError, match="TensorFlow"):
        autoattack.AutoAttack(problem.model, is_tf_model=True, **options)


class StoppedError(Exception):
    pass


def standard_run(problem, path, **options):
    import autoattack

    adversary = autoattack.AutoAttack(problem.model, eps=0.02, seed=0, verbose=False, device="cpu", **options)
    with torch.random.fork_rng():
        found = adversary.run_standard_evaluation(problem.images, problem.labels, 500, True, state_path=path)
    return found, None if path is None else autoattack.state.EvaluationState.from_disk(path)


@pytest.mark.parametrize("stopped_in", ["apgd", "fab", "square"])
def test_a_stopped_run_goes_on_to_the_same_robust_set(tmp_path, monkeypatch, stopped_in):
    import pyautoattack

    problem, path = problem_of(network()), tmp_path / "state.json"
    (whole, _), _ = standard_run(problem, None)
    standing = robust(problem, whole)

    def stop(*arguments):
        raise StoppedError

    attack = {
        "apgd": pyautoattack.autopgd_base.APGDAttack,
        "fab": pyautoattack.fab_base.FABAttack,
        "square": pyautoattack.square.SquareAttack,
    }[stopped_in]
    with monkeypatch.context() as patch:
        patch.setattr(attack, "perturb", stop)
        with pytest.raises(StoppedError):
            standard_run(problem, path)
    assert isinstance(json.loads(path.read_text())["_attacks_to_run"], str)  # as the published class writes it
    (images, labels), state = standard_run(problem, path)
    assert state.robust_flags.tolist() == [float(stands) for stands in standing]
    assert state.robust_flags.mean().item() == sum(standing) / 24
    assert state.clean_accuracy == 1
    assert torch.equal(labels, problem.model(images).argmax(1))
    assert 2 < sum(standing) < 22
    monkeypatch.setattr(attack, "perturb", stop)  # nothing is left to run
    assert standard_run(problem, path)[1].robust_flags.tolist() == state.robust_flags.tolist()


def test_a_run_stopped_before_its_first_attack_goes_on(tmp_path, monkeypatch):
    from pyautoattack import autoattack as loop
    from pyautoattack import checks
    from pyautoattack.state import EvaluationState as Published

    def stop(*arguments, **options):
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(checks, "check_randomized", stop)
        with pytest.raises(StoppedError):
            standard_run(problem_of(network()), tmp_path / "state.json")
    assert json.loads((tmp_path / "state.json").read_text())["_robust_flags"] is None
    assert loop.EvaluationState is Published
    (images, _), state = standard_run(problem_of(network()), tmp_path / "state.json")
    assert torch.equal(images, direct_run(problem_of(network()), 0))
    assert state.attacks_to_run == state.run_attacks | {"square"}


@pytest.mark.parametrize("content", ["", "{}"])
def test_a_damaged_state_is_refused(tmp_path, content):
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(ValueError, match="not a whole state file"):
        standard_run(problem_of(network()), tmp_path / "state.json")


def test_a_state_of_other_images_is_refused(tmp_path):
    standard_run(problem_of(network(), count=3), tmp_path / "state.json")
    with pytest.raises(ValueError, match="is of 3 images, this run of 5"):
        standard_run(problem_of(network(), count=5), tmp_path / "state.json")


def python(code, path=""):
    command = [sys.executable, "-W", "ignore", "-c", code]
    search_path = os.pathsep.join(filter(None, [path, str(ROOT)]))
    environment = {**os.environ, "PYTHONPATH": search_path, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.split()


def test_installing_imports_nothing_and_happens_once():
    code = """
import sys
import bench.interop.autoattack as package
package.install(); package.install()
print(sum(isinstance(finder, package.Finder) for finder in sys.meta_path), type(sys.meta_path[-1]).__name__)
print([name for name in ("torch", "pyautoattack", "autoattack", "numpy") if name in sys.modules])
"""
    assert python(code) == ["1", "Finder", "[]"]


def test_no_submodule_is_loaded_twice_and_the_class_is_one():
    import autoattack.checks
    import pyautoattack.checks
    import pyautoattack.state
    from autoattack.autoattack import AutoAttack as Renamed
    from autoattack.state import EvaluationState

    assert issubclass(EvaluationState, pyautoattack.state.EvaluationState)
    assert autoattack.checks is pyautoattack.checks
    assert Renamed is autoattack.AutoAttack and issubclass(Renamed, pyautoattack.AutoAttack)


def test_an_installed_original_wins(tmp_path):
    (tmp_path / "autoattack").mkdir()
    (tmp_path / "autoattack" / "__init__.py").write_text("AutoAttack = 'the original'\n")
    code = """
import bench.interop.autoattack as package
package.install()
import autoattack
print(autoattack.AutoAttack)
"""
    assert python(code, str(tmp_path)) == ["the", "original"]


def test_only_the_published_package_needs_batches_of_its_own():
    assert AutoAttack().fixed_batch is None
    assert AutoAttack(implementation="reference").fixed_batch == 500
