"""The fast path waits for nothing, and can be shared by processes.

That it computes what the plain one does is shown in test_graphs.py.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from bench.catalogue.plugins import find, make_defense, names
from bench.catalogue.recipes import protocol_for
from bench.data.datasets import load_dataset
from bench.interfaces import evaluation_mode
from bench.models import winograd
from bench.models.checkpoints import build_model, load_checkpoint
from bench.models.folding import FoldedView
from bench.training import profiling
from bench.training.averages import Averages
from bench.training.processes import Processes
from bench.training.profiling import profile
from bench.training.request import TrainingRequest
from bench.training.run import TrainingRun
from bench.training.train import train
from benchmarks.launches import Launches, counted
from tests import ROOT
from tests.models.test_folding import Shaped, built, images, used
from tests.support.command import bench
from tests.support.refusals import refusal
from tests.support.trainings import rows

each_defense = pytest.mark.parametrize("name", names("defense"))
DESCRIPTION = {"name": "digits", "num_classes": 10, "image_shape": [1, 8, 8]}


@pytest.fixture(scope="module")
def digits():
    dataset = load_dataset("digits", Path("data"))
    return replace(dataset, train=dataset.train.take(160))


def new_run(name, digits, backbone="cnn-small-bn", precision="fp32"):
    """A run at its first step; models it needs are untrained."""
    needed = {}
    for other in find("defense", name).requires:
        torch.manual_seed(1)
        needed[other] = build_model(make_defense(other, "digits", {}), backbone, DESCRIPTION).eval()
    given = {"batch_size": 16, "learning_rate": 0.01, "epsilon": "0.1", "attack_steps": 2}
    protocol = protocol_for("cifar10", {}, 1, True, given)
    config = {"defense": name, "seed": 0, "backbone": backbone, "dataset": DESCRIPTION, "precision": precision}
    defense = make_defense(name, "digits", {})
    return TrainingRun(defense, protocol, digits, torch.device("cpu"), config, needed)


@each_defense
def test_bfloat16_gives_the_losses_of_float32_to_its_rounding(digits, name):
    terms = []
    for precision in ("fp32", "bf16"):
        run = new_run(name, digits, precision=precision)
        context = run.context(9, Averages())
        run.model.train()
        run.defense.begin_epoch(run.model, context)
        terms.append(run.step(*next(run.steps(context))))
        assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())
        assert all(buffer.dtype in (torch.float32, torch.int64) for buffer in run.model.buffers())
    assert all(value.dtype == torch.float32 for value in terms[1].values())
    total = sum(value.abs() for value in terms[0].values())
    for key in terms[0]:
        assert (terms[1][key] - terms[0][key]).abs() < 0.02 * total, key


@each_defense
def test_no_step_waits_for_the_device(digits, name, monkeypatch):
    # On a CPU one_hot reads its input to check it; on CUDA it does not, given the number of classes.
    monkeypatch.setattr(functional, "one_hot", lambda labels, count: (labels[:, None] == torch.arange(count)).long())
    drawing, step = counted(new_run(name, digits), Averages())
    assert drawing.waits == step.waits == []
    assert step.kernels > drawing.kernels > 5


def test_the_counter_counts_operations_and_waits():
    with Launches() as launches:
        values = torch.ones(3)
        (values.view(3, 1) * 2).add_(1)
        assert (launches.kernels, launches.waits) == (3, [])
        values.sum().item()
        values[torch.tensor([True, False, True])]
    assert launches.waits == ["_local_scalar_dense", "lift_fresh", "index"]


@pytest.mark.parametrize(
    ("kind", "folds"),
    [("plain", 1), ("statistics read", 1), ("activated in place", 0), ("convolved twice", 0), ("read twice", 0)],
)
def test_the_view_folds_what_it_may_even_where_batchnorm_is_fresh(kind, folds):
    model = Shaped(kind).train()
    view = FoldedView(model, images(4))
    with view(model), torch.no_grad():
        assert not model.training
    assert len(view.pairs) == folds
    used(model).train()
    with torch.no_grad():
        with evaluation_mode(model):
            expected = model(images(4))
        with view(model) as folded:
            torch.testing.assert_close(folded(images(4)), expected, rtol=1e-5, atol=1e-6)
    assert model.training
    assert "forward" not in vars(model.conv) | vars(model.norm)


def test_the_view_of_a_wide_network_gives_its_logits_and_gradients(monkeypatch):
    model = built("at", "resnet18", side=8).double()
    batch = images(2, side=8).double().requires_grad_()
    view, used_filters, original = FoldedView(model, images(1, side=8).double()), [], winograd.convolution
    monkeypatch.setattr(winograd, "convolution", lambda *given: used_filters.append(1) or original(*given))
    expected = model(batch)
    (gradient,) = torch.autograd.grad(expected.logsumexp(1).sum(), batch)
    with view(model):
        found = model(batch)
        (ours,) = torch.autograd.grad(found.logsumexp(1).sum(), batch)
    assert len(used_filters) == 13
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours, gradient, rtol=1e-10, atol=1e-10 * gradient.abs().max().item())


def test_the_view_follows_the_weights_passes_gradients_and_shows_other_models_as_they_are():
    model, other = Shaped("plain"), Shaped("plain")
    view = FoldedView(model, images(4))
    for seed in (0, 1):
        used(model, seed)
        expected = model(images(4)).sum()
        gradients = torch.autograd.grad(expected, list(model.parameters()))
        with view(model) as folded:
            found = folded(images(4)).sum()
            assert "forward" in vars(model.norm)
            with view(model):
                pass
            assert "forward" in vars(model.norm)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        for ours, theirs in zip(torch.autograd.grad(found, list(model.parameters())), gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with view(other) as shown:
        assert shown is other
        assert "forward" not in vars(other.norm)
    with pytest.raises(KeyError), view(model):
        raise KeyError
    assert "forward" not in vars(model.norm) | vars(model.conv)


def test_shares_cover_a_batch_and_weigh_as_they_should():
    for total in (1, 2, 3, 5, 128):
        for count in (1, 2, 3):
            everyone = [Processes(rank, count) for rank in range(count)]
            shares = [process.share(total) for process in everyone]
            assert sum(p.weight(s) for p, s in zip(everyone, shares, strict=True)) == pytest.approx(1)
            if count > 1 and total >= count:
                assert [row for s in shares for row in range(s.first, s.end)] == list(range(total))
    assert Processes(1, 2).share(1).end == 1


@pytest.mark.parametrize(
    "variables",
    [
        *("RANK=1", "RANK=2 WORLD_SIZE=2", "WORLD_SIZE=0", "RANK=one", "LOCAL_RANK=-1"),
        "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=1",
    ],
)
def test_variables_that_no_process_can_have_are_refused_before_any_training(tmp_path, monkeypatch, variables):
    for name, _, text in (variable.partition("=") for variable in variables.split()):
        monkeypatch.setenv(name, text)
    asked = TrainingRequest("st", "digits", limit_train=64, folder=tmp_path)
    told = ("start several with torchrun, or, for one, unset RANK WORLD_SIZE LOCAL", *variables.split())
    refusal(lambda: train(asked, quiet=True), *told)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_torchrun_did_not_start_waits_for_no_other(tmp_path, monkeypatch):
    for name, text in {"WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, text)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    asked = TrainingRequest("st", "digits", device="cpu", folder=tmp_path)
    refusal(lambda: train(asked, quiet=True), "MASTER_ADDR expected, but not set", "unset RANK WORLD_SIZE")
    monkeypatch.delenv("WORLD_SIZE")
    assert Processes.from_environment() == Processes(0, 1)


TOGETHER = """
import os, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from bench.cli import main
from bench.errors import BenchError
from bench.training.request import TrainingRequest
from bench.training.train import train

rank, root, blobs = int(os.environ["RANK"]), Path(sys.argv[1]), sys.argv[2]
options = {"limit_train": 32, "device": "cpu", "protocol": {"epochs": 1, "batch_size": 16}}


def attempt(name, folder, **rest):
    try:
        train(TrainingRequest("st", blobs, "cnn-small", folder=root / folder, **options, **rest), True, True)
        text = f"finished {(root / folder / 'last' / 'model.safetensors').exists()}"
    except BenchError as error:
        text = str(error)
    (root / f"{name}.{rank}.txt").write_text(text)


attempt("seeds", "seeds", seed=rank)
attempt("alike", "alike")
attempt("finished", "alike" if rank else "empty")
attempt("again", "alike")
sys.argv = ["bench", "train", "--dataset", blobs, *sys.argv[3:]]
main()
"""


def test_processes_that_do_not_start_alike_are_all_refused_and_two_that_do_give_the_losses_of_one(tmp_path, blobs):
    """80 images in batches of 33: the slices are unequal, and the last batch is short."""
    (tmp_path / "together.py").write_text(TOGETHER)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "together.py")]
    words = "--backbone cnn-small --device cpu --defense at --epochs 3 --batch-size 33 --attack-steps 3 --milestones 2"
    words += " --awp 0.01 --average ema --average-decay 0.8"
    command = [sys.executable, *launcher, str(tmp_path), blobs, *words.split(), "--limit-train", "80", "--out", "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    outcome = subprocess.run(command, cwd=tmp_path, env=environment, timeout=600, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout == "two\n"
    for rank in (0, 1):
        heard = {path.name.split(".")[0]: path.read_text() for path in tmp_path.glob(f"*.{rank}.txt")}
        assert "the 2 processes do not start alike (different model, seed)" in heard["seeds"]
        assert "(different epochs, model, optimizer)" in heard["finished"]
        assert heard["alike"] == heard["again"] == "finished True"
    assert not list(tmp_path.glob("seeds/last")) + list(tmp_path.glob("empty/last"))
    protocol = {"epochs": 3, "batch_size": 33, "attack_steps": 3, "milestones": (2,)}
    protocol |= {"awp": 0.01, "average": "ema", "average_decay": 0.8}
    given = {"limit_train": 80, "device": "cpu", "protocol": protocol}
    one = rows(train(TrainingRequest("at", blobs, "cnn-small", folder=tmp_path / "one", **given), quiet=True))
    two = rows(tmp_path / "two")
    assert len(one) == len(two) == 3
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert load_checkpoint(tmp_path / "two").config["processes"] == 2
    averages = [load_checkpoint(tmp_path / name / "average").weights for name in ("two", "one")]
    torch.testing.assert_close(*averages, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dio", "fsr", "ikl", "pcl"])
def test_what_needs_whole_batches_is_refused_to_several_processes(tmp_path, monkeypatch, name):
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked = TrainingRequest(name, "digits", folder=tmp_path)
    refusal(lambda: train(asked, quiet=True), f"{name} cannot be trained by 2 processes: its ", "without torchrun")


def test_a_profile_accounts_for_the_whole_step_and_keeps_nothing(tmp_path, digits):
    """10 steps of a gradient to the input cost 20 forward passes and a little, the update 3, less the first layer."""
    run = new_run("at", digits)
    run.protocol = replace(run.protocol, attack_steps=10, batch_size=160)
    table = profile(run, seconds=0.2)
    parts = {line.split()[0]: line.replace("%", "").split()[1:] for line in table.splitlines()[2:6]}
    milliseconds, shares, flop = ({name: float(row[column]) for name, row in parts.items()} for column in range(3))
    assert set(parts) == {"data", "crafting", "update", "step"}
    assert sum(shares[name] for name in ("data", "crafting", "update")) == pytest.approx(100, abs=0.2)
    assert milliseconds["crafting"] > milliseconds["update"] > 0
    assert flop["data"] == 0
    assert flop["crafting"] / flop["update"] == pytest.approx(20 / 3, rel=0.1)
    assert "cnn-small-bn, batch 160, fp32 on cpu" in table
    assert list(tmp_path.iterdir()) == []


def test_a_profile_trains_no_model_that_the_defense_needs(tmp_path, monkeypatch):
    shown = []

    def briefly(run):
        shown.append(run)
        return profile(run, seconds=0.05)

    monkeypatch.setattr(profiling, "profile", briefly)
    monkeypatch.chdir(tmp_path)
    size = ["--dataset", "digits", "--limit-train", "32", "--batch-size", "16", "--attack-steps", "1"]
    code, output = bench("train", "--defense", "hat", *size, "--device", "cpu", "--profile")
    assert (code, output[:24]) == (0, "hat, cnn-small, batch 16"), output
    (needed,) = shown[0].requirements.values()
    assert not needed.training
    assert needed.state_dict().keys() == shown[0].model.state_dict().keys()
    assert list(tmp_path.iterdir()) == []
