"""Sharing, shortening, splitting and resuming change no verdict."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from bench.catalogue.plugins import make_attack
from bench.catalogue.suites import AttackCell, Suite
from bench.data.datasets import load_dataset
from bench.data.splits import Split
from bench.engine import run as engine
from bench.engine.groups import plan
from bench.engine.target import Target
from bench.evaluation.evaluate import evaluate
from bench.evaluation.prepare import prepare
from bench.evaluation.request import EvaluationRequest
from bench.interfaces import IterativeAttack, LinearClassifier, ThreatModel
from bench.models.backbones import make_backbone
from bench.models.checkpoints import load_checkpoint
from bench.results.file import content_digest, read_result
from bench.system.blocks import PartStore
from tests import ROOT

CELLS = (
    AttackCell("PGD-3", "pgd", "linf", "0.15", {"steps": 3}),
    AttackCell("PGD-20", "pgd", "linf", "0.15", {"steps": 20}),
    AttackCell("PGD-20x3", "pgd", "linf", "0.15", {"steps": 20, "restarts": 3}),
    AttackCell("PGD-9x5", "pgd", "linf", "0.15", {"steps": 9, "restarts": 5}),
    AttackCell("PGD-20 eps/4", "pgd", "linf", "0.15", {"steps": 20, "step_size": "eps/4"}),
    AttackCell("PGD l2", "pgd", "l2", "0.5", {"steps": 12}),
    AttackCell("C&W", "cw", "linf", "0.15", {"steps": 8}),
    AttackCell("FGSM", "fgsm", "linf", "0.15"),
)


COUNT, CONVENTIONS = 64, ("any", "final")
MEASURED = {"any": ("prediction", "distance"), "final": ("prediction", "final_prediction", "distance")}


@pytest.fixture(scope="module")
def target(digits_run):
    test = load_dataset("digits", Path()).test.take(COUNT)
    return lambda **options: Target(load_checkpoint(digits_run).build(), test, seed=3, **options)


@pytest.fixture(scope="module")
def together(target):
    """All cells in one suite, under either convention."""
    return {name: engine.run_suite(target(), suite(*CELLS), convention=name) for name in CONVENTIONS}


def suite(*cells):
    return Suite("test", 1, "", cells, {})


def assert_equal(first, second, names=MEASURED["final"]):
    for name in names:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_cells_that_differ_in_steps_and_restarts_share_a_group():
    attacks = {cell.label: make_attack(cell.attack, cell.parameters) for cell in CELLS}
    groups = [[cell.label for cell in group.cells] for group in plan(CELLS, attacks)]
    assert groups == [["PGD-3", "PGD-20", "PGD-20x3", "PGD-9x5"], ["PGD-20 eps/4"], ["PGD l2"], ["C&W"], ["FGSM"]]
    same = (AttackCell("A", "pgd", "linf", "8/255", {"step_size": "1/255"}), AttackCell("B", "pgd", "linf", "8/255"))
    assert len(plan(same, {cell.label: make_attack(cell.attack, cell.parameters) for cell in same})) == 1


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_shared_cells_equal_cells_run_alone(target, together, convention):
    for cell in CELLS:
        alone = engine.run_suite(target(), suite(cell), convention=convention)
        assert_equal(together[convention].attacks[cell.label], alone.attacks[cell.label], MEASURED[convention])
        assert 0 < (alone.attacks[cell.label].prediction != alone.label).sum() < COUNT


def plain(target, cell):
    """What a script would do: every restart of every clean-correct sample to its last step, one batch, no sharing.

    Returns per sample: broken by any iterate of any restart, and by the last iterate of any restart.
    """
    clean = target.judge(target.split.images(slice(None))).argmax(1)
    indices = (clean == target.split.labels).nonzero().squeeze(1)
    attack = make_attack(cell.attack, cell.parameters)
    group = plan((cell,), {cell.label: attack})[0]
    labels = target.split.labels[indices]
    any_broken = torch.zeros(len(clean), dtype=torch.bool)
    final_broken = any_broken.clone()
    steps, restarts = attack.lengths
    for restart in range(restarts):
        problem = target.problem(target.search_view(), indices, group)
        state = attack.begin(problem, restart)
        for step in range(steps + 1):
            wrong = target.model(state["images"]).argmax(1) != labels
            any_broken[indices] |= wrong
            if step < steps:
                state = attack.step(problem, state)
        final_broken[indices] |= wrong
    return any_broken | (clean != target.split.labels), final_broken | (clean != target.split.labels)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.label)
def test_the_engine_equals_a_plain_script(target, together, cell):
    any_broken, final_broken = plain(target(), cell)
    outcome = together["final"].attacks[cell.label]
    label = target().split.labels.numpy()
    np.testing.assert_array_equal(outcome.prediction != label, any_broken.numpy())
    np.testing.assert_array_equal(outcome.final_prediction != label, final_broken.numpy())


@pytest.mark.parametrize("size", [13, 40])
def test_batches_change_no_verdict(target, together, size):
    other = engine.run_suite(target(batch_size=size), suite(*CELLS), convention="final")
    for cell in CELLS:
        one, same = together["final"].attacks[cell.label], other.attacks[cell.label]
        assert_equal(one, same, ("prediction", "final_prediction"))
        # Products of matrices of other sizes round otherwise on some processors: by how much, not whether, is stored.
        np.testing.assert_allclose(one.distance, same.distance, rtol=1e-5)


def test_the_final_convention_measures_any_as_well(together):
    short, long = (together[name] for name in CONVENTIONS)
    for cell in CELLS:
        assert_equal(short.attacks[cell.label], long.attacks[cell.label], ("prediction", "distance"))
        assert short.attacks[cell.label].final_prediction is None


def mixed_features(model, images, labels):
    """The loss of features moved half way to those of the next image of the batch."""

    def loss(view, perturbed):
        features = view.features(perturbed)
        return cross_entropy(view.score(features + 0.5 * (features.roll(1, 0) - features)), labels, reduction="none")

    return loss


def turned_images(model, images, labels):
    """The loss of the image and of the image turned over its diagonal, which lies at the same place of memory."""

    def loss(view, perturbed):
        straight = cross_entropy(view(perturbed), labels, reduction="none")
        return straight + cross_entropy(view(perturbed.transpose(2, 3)), labels, reduction="none")

    return loss


@pytest.mark.parametrize("objective", [mixed_features, turned_images])
def test_logits_of_other_images_are_no_verdicts(target, objective):
    cell = AttackCell("own", "pgd", "linf", "0.15", {"steps": 6}, objective="own")
    tested = target(objectives={"own": objective}, keeps_images=True)
    record = engine.run_suite(tested, suite(cell)).attacks["own"]
    indices = torch.arange(len(tested.split))
    (group,) = plan([cell], {"own": make_attack("pgd", {"steps": 6})})
    problem = tested.problem(tested.search_view(), indices, group)
    state = group.attacks[0].begin(problem, 0)
    standing = tested.predict(problem.images) == problem.labels
    for _ in range(7):
        standing &= tested.predict(state["images"]) == problem.labels
        state = group.attacks[0].step(problem, state)
    right = tested.predict(problem.images) == problem.labels
    expected = right.numpy() & standing.numpy()
    np.testing.assert_array_equal((record.prediction == tested.split.labels.numpy()) & right.numpy(), expected)
    assert 0 < expected.sum() < right.sum()


@torch.no_grad()
def test_a_view_remembers_logits_of_untouched_features_alone(target):
    tested = target()
    images = tested.split.images(slice(0, 4))
    view = tested.search_view()
    assert torch.equal(view.score(view.features(images)), view.seen(images))
    for touched in (lambda features: features.clone(), lambda features: features.mul_(-1)):
        view = tested.search_view()
        view.score(touched(view.features(images)))
        assert view.seen(images) is None


def test_half_precision_claims_are_confirmed_in_float32(target, monkeypatch):
    model = target().model
    # A search that sees every image as broken breaks nothing that the judge does not confirm.
    blind = target(search_model=torch.nn.Sequential(model, Wrong()))
    record = engine.run_suite(blind, suite(AttackCell("F", "fgsm", "linf", "0.0001"))).attacks["F"]
    clean = blind.judge(blind.split.images(slice(None))).argmax(1).numpy()
    np.testing.assert_array_equal(record.prediction, clean)


class Wrong(torch.nn.Module):
    def forward(self, logits):
        return -logits


@dataclass(frozen=True)
class Darkening(IterativeAttack):
    """A step darker at a time."""

    paper: ClassVar[str] = "none"
    steps: int = 1
    in_place: bool = False

    def begin(self, problem, restart):
        return {"images": problem.images.clone()}

    def step(self, problem, state):
        problem.model(state["images"])
        moved = state["images"].sub_(0.03) if self.in_place else state["images"] - 0.03
        return {"images": moved}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_an_attack_may_go_on_in_the_tensor_it_was_given(target, monkeypatch, convention):
    cells = [AttackCell(f"D-{steps}", "darkening", "linf", "0.15", {"steps": steps}) for steps in (1, 2, 4)]
    outcomes = []
    for in_place in (False, True):
        monkeypatch.setattr(engine, "make_attack", lambda name, given, way=in_place: Darkening(**given, in_place=way))
        outcomes.append(engine.run_suite(target(), suite(*cells), convention=convention))
    for cell in cells:
        assert_equal(outcomes[0].attacks[cell.label], outcomes[1].attacks[cell.label], MEASURED[convention])
    broken = [int((outcomes[0].attacks[cell.label].prediction != outcomes[0].label).sum()) for cell in cells]
    assert broken[0] < broken[2]


@dataclass(frozen=True)
class Overstepping(IterativeAttack):
    """Walks out of the ball, darker at each step."""

    paper: ClassVar[str] = "none"
    steps: int = 4

    def begin(self, problem, restart):
        return {"images": problem.images}

    def step(self, problem, state):
        problem.model(state["images"])
        return {"images": state["images"] - 0.08}


def test_iterates_outside_the_ball_never_count_and_the_last_is_projected(target, monkeypatch):
    monkeypatch.setattr(engine, "make_attack", lambda name, given: Overstepping())
    cell = AttackCell("O", "overstepping", "linf", "0.1")
    record = engine.run_suite(target(), suite(cell), convention="final").attacks["O"]
    assert record.distance.max() <= 0.1 + 1e-6
    images, labels = target().samples(torch.arange(COUNT))
    threat = ThreatModel("linf", "0.1")
    allowed = [images, images - 0.08, threat.project(images - 0.32, images)]
    # Only start and first step are inside (where pixels allow), and the projection of the last.
    inside = [
        torch.ones(COUNT, dtype=torch.bool),
        (images >= 0.08).flatten(1).all(1),
        torch.ones(COUNT, dtype=torch.bool),
    ]
    wrong = [(target().judge(x).argmax(1) != labels) & ok for x, ok in zip(allowed, inside, strict=True)]
    clean_wrong = wrong[0]
    np.testing.assert_array_equal(record.final_prediction != labels.numpy(), (wrong[2] | clean_wrong).numpy())
    np.testing.assert_array_equal(record.prediction != labels.numpy(), (wrong[1] | wrong[2] | clean_wrong).numpy())


@dataclass(frozen=True)
class Dissolving(Overstepping):
    """Ends in images that are not numbers."""

    def step(self, problem, state):
        return {"images": state["images"] * float("nan")}


def test_images_that_are_not_finite_break_nothing(target, monkeypatch):
    monkeypatch.setattr(engine, "make_attack", lambda name, given: Dissolving())
    for norm in ("linf", "l2"):
        outcome = engine.run_suite(target(), suite(AttackCell("D", "dissolving", norm, "0.1")), convention="final")
        np.testing.assert_array_equal(outcome.attacks["D"].prediction, outcome.clean_prediction)
        np.testing.assert_array_equal(outcome.attacks["D"].final_prediction, outcome.clean_prediction)


# ------------------------------------------------------------------------------------ stopped and shared


def request(digits_run, out, **options):
    options = {"suite": "linf", "limit": 40, "batch_size": 10, "probes": 0, **options}
    return EvaluationRequest(checkpoint=digits_run, out=out, **options)


def test_a_stopped_evaluation_goes_on_with_the_parts_it_has(digits_run, tmp_path, monkeypatch):
    whole, _ = evaluate(request(digits_run, tmp_path / "whole.h5"))
    original, calls = engine.GroupRun.run_block, []

    def failing(run, block):
        calls.append(len(block))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(run, block)

    monkeypatch.setattr(engine.GroupRun, "run_block", failing)
    with pytest.raises(KeyboardInterrupt):
        evaluate(request(digits_run, tmp_path / "stopped.h5"))
    assert not (tmp_path / "stopped.h5").exists()
    evaluate(request(digits_run, tmp_path / "stopped.h5"))
    blocks = -(-int((whole.clean_prediction == whole.label).sum()) // 10)
    assert len(calls) == 3 * blocks + 1
    assert content_digest(read_result(tmp_path / "stopped.h5")) == content_digest(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped.h5", "whole.h5"]


def test_parts_of_another_evaluation_are_not_picked_up(tmp_path):
    PartStore(tmp_path / "r.h5", {"seed": 0}).put("clean", {"prediction": np.arange(3)})
    assert PartStore(tmp_path / "r.h5", {"seed": 1}).get("clean") is None
    kept = PartStore(tmp_path / "r.h5", {"seed": 0})
    np.testing.assert_array_equal(kept.get("clean")["prediction"], np.arange(3))
    file = next(kept.folder.iterdir())
    file.write_bytes(file.read_bytes()[:50])
    assert kept.get("clean") is None


def test_parts_belong_to_the_loss_they_were_made_with(digits_run, tmp_path):
    file = tmp_path / "losses.py"
    text = (
        "def loss(model, perturbed, clean, labels):\n"
        "    return {} * model(perturbed).gather(1, labels[:, None])[:, 0]\n"
    )
    asked = request(digits_run, tmp_path / "r.h5", suite="quick", adaptive=f"{file}:loss", limit=20)
    identities = []
    for sign in ("-1", "1"):
        file.write_text(text.format(sign))
        identities.append(prepare(asked).identity())
    assert identities[0] != identities[1]
    assert {key for key in identities[0] if identities[0][key] != identities[1][key]} == {"files"}


def test_a_killed_evaluation_goes_on_to_an_undisturbed_one(digits_run, tmp_path, monkeypatch):
    """Of a process that is given no time to end; what processes share is in tests/evaluation/test_sharing.py."""
    calls, run_block = [], engine.GroupRun.run_block
    monkeypatch.setattr(engine.GroupRun, "run_block", lambda *given: calls.append(1) or run_block(*given))
    whole, _ = evaluate(request(digits_run, tmp_path / "whole.h5"))
    blocks = len(calls)
    arguments = ["eval", digits_run, "--suite", "linf", "--limit", 40, "--batch-size", 10, "--probes", 0]
    command = [sys.executable, "-m", "bench", *map(str, arguments), "--out", str(tmp_path / "killed.h5")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob(".killed.h5.*.parts/000-*.npz")) and time.monotonic() < deadline:
        time.sleep(0.005)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert not (tmp_path / "killed.h5").exists()
    evaluate(request(digits_run, tmp_path / "killed.h5"))
    assert blocks <= len(calls) < 2 * blocks
    assert content_digest(read_result(tmp_path / "killed.h5")) == content_digest(whole)


def test_a_loss_of_ones_own_and_transferred_images_add_columns(digits_run, tmp_path):
    (tmp_path / "losses.py").write_text(
        "def margin(model, perturbed, clean, labels):\n"
        "    logits = model(perturbed)\n"
        "    true = logits.gather(1, labels[:, None])[:, 0]\n"
        "    return logits.scatter(1, labels[:, None], -1e9).amax(1) - true\n"
    )
    own = f"{tmp_path / 'losses.py'}:margin"
    result, _ = evaluate(request(digits_run, tmp_path / "r.h5", suite="quick", adaptive=own, transfer=(digits_run,)))
    labels = list(result.attacks)
    assert labels == ["FGSM", "PGD-20", f"PGD-20 from {digits_run}", "PGD-20 own loss"]
    assert result.suite["name"] == "quick+"
    assert result.attacks["PGD-20 own loss"].objective == own
    # Crafted against the very same model, with the same draws, transferred images are those of the attack itself.
    transferred, direct = result.attacks[labels[2]], result.attacks["PGD-20"]
    assert transferred.parameters["source"] == str(digits_run)
    assert transferred.parameters["source_digest"] == result.run["checkpoint_digest"]
    written = hashlib.sha256((tmp_path / "losses.py").read_bytes()).hexdigest()
    assert result.attacks["PGD-20 own loss"].parameters == {**direct.parameters, "objective_sha256": written}
    assert (transferred.prediction != result.label).sum() <= (direct.prediction != result.label).sum()
    checked = Target(load_checkpoint(digits_run).build(), load_dataset("digits", Path()).test.take(40))
    cell = AttackCell("M", "pgd", "linf", "0.15", {"loss": "margin"})
    same = engine.run_suite(checked, suite(cell)).attacks["M"]
    np.testing.assert_array_equal(same.prediction, result.attacks["PGD-20 own loss"].prediction)


def test_batches_change_no_verdict_of_a_resnet18():
    """Convolutions may round differently for a batch of one: rows are filled up, so nothing of that shows."""
    torch.manual_seed(0)
    model = LinearClassifier(make_backbone("resnet18", 3, (8, 8)), 10).eval()
    pixels = torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        labels = model(pixels.float() / 255).argmax(1)
    cells = (
        AttackCell("PGD-5", "pgd", "linf", "16/255", {"steps": 5}),
        AttackCell("APGD-CE", "apgd-ce", "linf", "8/255", {"steps": 5}),
    )
    outcomes = [
        engine.run_suite(Target(model, Split(pixels, labels), batch_size=size), suite(*cells), convention="final")
        for size in (1, 9)
    ]
    for cell in cells:
        broken = int((outcomes[0].attacks[cell.label].prediction != labels.numpy()).sum())
        assert 0 < broken < 9
        assert_equal(outcomes[0].attacks[cell.label], outcomes[1].attacks[cell.label])
