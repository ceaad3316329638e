"""The first minutes of a borrowed GPU: is it right, then how fast is it, each with its gate.

    python -m benchmarks.gpu --data npz:cifar10.npz --checkpoint RUN --out gpu.json
    python -m benchmarks.gpu --device cpu --toy --out toy.json

Correctness first: logits and gradients against a CPU in float64, one update of every defense with noise drawn on the
CPU, verdicts of PGD-20 on both, other batch sizes, folding, a synchronisation planted in a recorded step. Then speed:
training steps (plain eager in TF32, ours in fp32, tf32 and bf16, recorded), and AutoAttack stage by stage with the sets
of images that stand compared. An item that fails does not stop the next; the file is written after each. Without
`--data` images are noise, without `--checkpoint` the model is untrained: the work is the same. `--toy` takes everything
so small that a processor does it in seconds; speeds then have no gate.
"""

import argparse
import copy
import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from inspect import signature
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import flop_registry

from bench.attacks.apgd_ce import APGDCE
from bench.attacks.apgd_t import APGDT
from bench.attacks.fab import FAB
from bench.attacks.square import Square
from bench.catalogue.plugins import find, make_defense, names
from bench.catalogue.recipes import protocol_for
from bench.catalogue.suites import AttackCell, Suite
from bench.data.datasets import load_dataset
from bench.data.splits import Dataset, Split
from bench.engine.observed import ModelView
from bench.engine.run import run_suite
from bench.engine.target import Target
from bench.interfaces import Draws, Problem, ThreatModel
from bench.models.checkpoints import build_model, load_checkpoint
from bench.models.folding import folded
from bench.system.devices import choose_device, full_float32, tensor_floats
from bench.system.files import write_text
from bench.training.averages import Averages
from bench.training.run import TrainingRun
from benchmarks.launches import Launches
from benchmarks.training import plain_at, plain_trades

FEW = 2 / 512
"""Share of the verdicts that rounding may turn."""
PEAK = 798.0
"""TFLOP/s of a bf16 matrix product on an H100 or H200, where the first item has measured none."""
ROUNDINGS = {"fp32": (1e-4, 2e-3), "tf32": (1e-2, 0.03), "bf16": (0.1, 0.12)}
"""By precision: how far logits may move, relative to the largest one, and the share of gradients that may turn."""
TIMED = ("at", "adv-dpnp", "trades")
STAGES = {"apgd-ce": APGDCE(), "apgd-t": APGDT(), "fab-t": FAB(), "square": Square()}


class NotHereError(Exception):
    """Says why an item cannot be done here."""


@dataclass
class Outcome:
    """What came of an item."""

    name: str
    status: str
    """passed, failed or skipped."""
    value: float | None = None
    unit: str = ""
    gate: float | None = None
    note: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Found:
    """What an item has measured; it passes where the value is at most, or with `least` at least, the gate."""

    value: float
    unit: str = ""
    gate: float | None = None
    least: bool = False
    note: str = ""

    @property
    def passed(self) -> bool:
        """True without a gate, and where it holds."""
        if self.gate is None:
            return bool(np.isfinite(self.value))
        return self.value >= self.gate if self.least else self.value <= self.gate


Item = tuple[str, Callable[[], Found]]


class Bench:
    """The items, on a device, at a size."""

    def __init__(self, device: torch.device, toy: bool, data: str | None, checkpoint: Path | None) -> None:
        self.device, self.toy, self.data, self.checkpoint = device, toy, data, checkpoint
        self.cuda = device.type == "cuda"
        self.side, self.backbone = (8, "cnn-small-bn") if toy else (32, "resnet18")
        self.batch, self.count = (6, 12) if toy else (128, 512)
        self.warm, self.timed = (0, 1) if toy else (20, 60)
        self.steps = 1 if toy else 10
        self.cpu = torch.device("cpu")
        self.milliseconds: dict[str, float] = {}
        self.standing: dict[str, set[int]] = {}
        self.peak = PEAK

    # ---------------------------------------------------------------------------------------------- what is shared

    @cached_property
    def dataset(self) -> Dataset:
        """Test images of the dataset that was named, or noise."""
        if self.data:
            return load_dataset(self.data, Path("data"))
        numbers = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (self.count, 3, self.side, self.side), dtype=torch.uint8, generator=numbers)
        split = Split(pixels, torch.arange(self.count) % 10)
        return Dataset("noise", 10, split, split, {"linf": "8/255"}, 4, True, "")

    @cached_property
    def model(self) -> nn.Module:
        """The checkpoint's model on the CPU, or an untrained one whose logits are centred and used."""
        if self.checkpoint:
            return load_checkpoint(self.checkpoint).build().eval().requires_grad_(False)
        model = self.untrained("at").train()
        images = self.dataset.test.images(slice(0, 64))
        with torch.no_grad():
            for _ in range(20):
                model(images)  # running statistics
            model.eval()
            model.head.bias -= model(images).mean(0)
        return model.requires_grad_(False)

    @cached_property
    def split(self) -> Split:
        """Test images; an untrained model's own predictions are its labels."""
        test = self.dataset.test.take(min(self.count, len(self.dataset.test)))
        if self.checkpoint:
            return test
        with torch.no_grad():
            labels = torch.cat([self.model(part).argmax(1) for part in test.images(slice(None)).split(64)])
        return Split(test.pixels, labels)

    def untrained(self, name: str) -> Any:
        """A defense's model, the same on every device."""
        torch.manual_seed(0)
        shape = {"image_shape": (3, self.side, self.side), "num_classes": 10}
        return build_model(make_defense(name, "cifar10", {}), self.backbone, shape)

    def on(self, device: torch.device) -> nn.Module:
        """A copy of the model there."""
        return copy.deepcopy(self.model).to(device)

    def only_cuda(self) -> None:
        """Skip an item that a processor cannot show."""
        if not self.cuda:
            raise NotHereError("exists on CUDA only")

    def wait(self) -> float:
        """The time, once the device has done all its work."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def rounding(self, precision: str) -> Iterator[None]:
        """Computing in a precision, as a search does."""
        half = torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")
        with tensor_floats(precision != "fp32"), half:
            yield

    # ---------------------------------------------------------------------------------------------------- ceilings

    def ceilings(self) -> Iterator[Item]:
        """The most that the device does."""
        for precision in ROUNDINGS:
            yield f"matrix product, {precision}", partial(self.product, precision)
        yield "copy", self.copying

    def product(self, precision: str) -> Found:
        """TFLOP/s of square matrices."""
        if precision == "tf32":
            self.only_cuda()
        size, repeats = (64, 2) if self.toy else (8192, 20)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        one = torch.rand(size, size, device=self.device, dtype=dtype)
        with tensor_floats(precision != "fp32"):
            one @ one
            started = self.wait()
            for _ in range(repeats):
                one @ one
            speed = 2 * size**3 * repeats / (self.wait() - started) / 1e12
        if precision == "bf16" and not self.toy:
            self.peak = speed
        return Found(speed, "TFLOP/s", 0.0, least=True)

    def copying(self) -> Found:
        """GB/s read and written."""
        one = torch.empty(2**14 if self.toy else 2**30, device=self.device, dtype=torch.uint8)
        other = torch.empty_like(one)
        other.copy_(one)
        started = self.wait()
        for _ in range(10):
            other.copy_(one)
        return Found(20 * len(one) / (self.wait() - started) / 1e9, "GB/s", 0.0, least=True)

    # ------------------------------------------------------------------------------------------------- correctness

    def correctness(self) -> Iterator[Item]:
        """What must hold before any speed counts."""
        for precision in ROUNDINGS:
            yield f"logits, {precision} against float64", partial(self.logits, precision)
            yield f"gradients, {precision} against float64", partial(self.gradients, precision)
        yield "folded under TF32", self.folding
        for name in names("defense"):
            yield f"one update of {name}", partial(self.one_update, name)
        yield "PGD-20 verdicts against the CPU's", self.verdicts
        yield "batches of 256 against 64", self.batches
        yield "draws against the CPU's", self.draws
        yield "a synchronisation in a recorded step", self.synchronisation

    @cached_property
    def exact(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images, labels, and on the CPU in float64 their logits and gradients."""
        count = min(64, len(self.split))
        images, labels = self.split.images(slice(0, count)), self.split.labels[:count]
        return images, labels, *logits_and_gradients(copy.deepcopy(self.model).double(), images.double(), labels)

    def rounded(self, precision: str) -> tuple[Tensor, Tensor]:
        """Logits and gradients of the same on the device."""
        if precision == "tf32":
            self.only_cuda()
        images, labels, *_ = self.exact
        with self.rounding(precision):
            found = logits_and_gradients(self.on(self.device), images.to(self.device), labels.to(self.device))
        return found[0].double().cpu(), found[1].double().cpu()

    def logits(self, precision: str) -> Found:
        """How far they are off, relative to the largest one."""
        found, expected = self.rounded(precision)[0], self.exact[2]
        apart = float((found - expected).abs().max() / expected.abs().max())
        return Found(apart, "of the largest", ROUNDINGS[precision][0])

    def gradients(self, precision: str) -> Found:
        """The share of the signs that turn."""
        found, expected = self.rounded(precision)[1], self.exact[3]
        return Found(float((found.sign() != expected.sign()).double().mean()), "of the signs", ROUNDINGS[precision][1])

    def folding(self) -> Found:
        """BatchNorms that are left in the search model; with TF32 allowed, which alone moves logits by more."""
        with tensor_floats(True):
            fast = folded(self.on(self.device), self.split.images(slice(0, 8)).to(self.device))
        if fast is None:
            raise RuntimeError("folding was refused")
        return Found(sum(isinstance(layer, nn.BatchNorm2d) for layer in fast.modules()), "BatchNorms left", 0.0)

    def one_update(self, name: str) -> Found:
        """How far the weights end from the CPU's, relative to the way that those went."""
        ends = []
        for device in (self.cpu, self.device):
            run, batch = self.training(name, "fp32", device)
            before = [weight.detach().cpu().clone() for weight in run.model.parameters()]
            with drawn_on_the_cpu(), full_float32():
                run.step(*batch)
            ends.append([weight.detach().cpu() for weight in run.model.parameters()])
        way, apart = (
            sum(float((one - other).double().square().sum()) for one, other in zip(*pair, strict=True)) ** 0.5
            for pair in ((ends[0], before), ends)
        )
        return Found(apart / max(way, 1e-300), "of the way", 0.05)

    def broken(self, device: torch.device, **options: Any) -> set[int]:
        """Images that PGD-20 breaks there."""
        cell = AttackCell("PGD", "pgd", "linf", "8/255", {"steps": 4 if self.toy else 20})
        outcome = run_suite(Target(self.on(device), self.split.to(device), **options), Suite("gpu", 1, "", (cell,), {}))
        return set(np.flatnonzero(outcome.attacks["PGD"].prediction != outcome.label).tolist())

    def compared(self, one: set[int], other: set[int]) -> Found:
        """The share of images in one set only."""
        note = f"{len(one)} and {len(other)} of {len(self.split)}"
        return Found(len(one ^ other) / len(self.split), "of the verdicts", FEW, note=note)

    def verdicts(self) -> Found:
        """PGD-20 on the CPU and on the device, which searches as by default."""
        fast = folded(self.on(self.device), self.split.images(slice(0, 8)).to(self.device))
        return self.compared(self.broken(self.cpu), self.broken(self.device, tf32=self.cuda, search_model=fast))

    def batches(self) -> Found:
        """PGD-20 in batches of two sizes."""
        sizes = (8, 4) if self.toy else (256, 64)
        return self.compared(*(self.broken(self.device, batch_size=size) for size in sizes))

    def draws(self) -> Found:
        """The share of the numbers that differ; on CUDA they are made there."""
        made = [
            Draws(0, "gpu", np.arange(8)).uniform(torch.empty(8, 3, 9, 9, device=device)).cpu()
            for device in (self.cpu, self.device)
        ]
        return Found(float((made[0] != made[1]).double().mean()), "of the numbers", 0.0)

    def synchronisation(self) -> Found:
        """1 where a step that waits is refused, and a sound one is recorded after it."""
        from bench.training import cuda_graphs

        recorder = getattr(cuda_graphs, "CudaRecorder", None)
        if recorder is None or list(signature(recorder.__call__).parameters)[1:] != ["step", "generator"]:
            raise NotHereError("whole steps are not recorded here")
        self.only_cuda()
        record, generator = recorder(), torch.Generator(self.device)
        place = torch.ones(4, device=self.device)

        def sound() -> dict[str, Tensor]:
            return {"sum": place.mul_(2).sum()}

        def waiting() -> dict[str, Tensor]:
            return {"sum": place.mul_(float(place.sum()))}

        with record.working():
            sound()
            try:
                record(waiting, generator)
            except RuntimeError as error:
                note = str(error).splitlines()[0]
            else:
                raise RuntimeError("a step that waits was recorded")
            place.fill_(1.0)
            replay, terms = record(sound, generator)
            replay()
            doubled = float(terms["sum"])
        return Found(doubled, "after one replay of a doubling of 4", 8.0, least=True, note=note)

    # ------------------------------------------------------------------------------------------------------- speed

    def speed(self) -> Iterator[Item]:
        """How long a step takes, and AutoAttack."""
        for name in TIMED:
            if name != "adv-dpnp":  # nobody has published a loop
                yield f"{name}: plain eager", partial(self.plain, name)
            for precision in ("fp32", "tf32", "bf16"):
                yield f"{name}: ours, {precision}", partial(self.ours, name, precision)
            yield f"{name}: ours, bf16, recorded", partial(self.recorded, name)
        few = 64 if self.toy else 2048
        for title, half, size in (("fp32", False, 256), ("bf16", True, 256), ("bf16", True, few)):
            for stage in STAGES:
                title_of_run = f"{title} at {size}"
                yield f"{stage}: ours, {title_of_run}", partial(self.stage, stage, title_of_run, half, size)
        yield "AutoAttack: pyautoattack, tf32", self.published

    def training(self, name: str, precision: str, device: torch.device) -> tuple[TrainingRun, tuple[Any, ...]]:
        """A run of a defense, and its first batch with what a step is told."""
        numbers = torch.Generator().manual_seed(0)
        count = self.batch * (1 if self.toy else 24)
        pixels = torch.randint(0, 256, (count, 3, self.side, self.side), dtype=torch.uint8, generator=numbers)
        split = Split(pixels, torch.arange(count) % 10)
        dataset = Dataset("noise", 10, split, split, {"linf": "8/255"}, 4, True, "")
        given = {"batch_size": self.batch, "learning_rate": 0.01, "attack_steps": self.steps}
        protocol = protocol_for("cifar10", dataset.epsilons, dataset.crop_padding, dataset.flip, given)
        about = {"name": "noise", "num_classes": 10, "image_shape": [3, self.side, self.side]}
        config = {"seed": 0, "backbone": self.backbone, "dataset": about, "precision": precision}
        needed = {one: self.untrained(one).eval().to(device) for one in find("defense", name).requires}
        run = TrainingRun(make_defense(name, "cifar10", {}), protocol, dataset, device, config, needed)
        run.model.train()
        context = run.context(0, Averages())
        with drawn_on_the_cpu():
            run.defense.begin_epoch(run.model, context)
            return run, next(iter(run.steps(context)))

    def timing(self, title: str, step: Callable[[], object], baseline: str | None = None) -> Found:
        """Milliseconds of a step, its kernels, and its share of the peak."""
        step()  # finds what it folds
        with Work() as work:
            step()
        for _ in range(self.warm):
            step()
        started = self.wait()
        for _ in range(self.timed):
            step()
        self.milliseconds[title] = 1e3 * (self.wait() - started) / self.timed
        share = work.flops / self.milliseconds[title] / 1e9 / self.peak
        note = f"{work.kernels} kernels, {len(work.waits)} waits, {share:.1%} of the peak"
        if baseline in self.milliseconds:
            note += f", {self.milliseconds[baseline] / self.milliseconds[title]:.2f} times as fast as plain"
        return Found(self.milliseconds[title], "ms", note=note)

    def plain(self, name: str) -> Found:
        """The published loop, NCHW; with TF32 where there is such a thing."""
        model = self.untrained(name).to(self.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        images, labels = torch.rand(self.batch, 3, self.side, self.side), torch.arange(self.batch) % 10
        loop = {"at": plain_at, "trades": plain_trades}[name]
        with self.device, tensor_floats(True):  # the loops draw their noise where tensors are made
            return self.timing(
                f"{name}: plain", partial(loop, model, optimizer, images.to(self.device), labels.to(self.device))
            )

    def ours(self, name: str, precision: str) -> Found:
        """A step of `bench train`."""
        if precision == "tf32":
            self.only_cuda()
        run, batch = self.training(name, precision, self.device)
        with tensor_floats(precision != "fp32"):
            return self.timing(f"{name}: {precision}", partial(run.step, *batch), f"{name}: plain")

    def recorded(self, name: str) -> Found:
        """Milliseconds of a step of an epoch whose steps are replays."""
        self.only_cuda()
        from bench.training import recorded_steps
        from bench.training.stray_state import StrayState

        run, _ = self.training(name, "bf16", self.device)
        said: list[str] = []
        run.graphs = recorded_steps.Graphs(said.append)
        stray = StrayState(run.defense, run.model, (run.optimizer, *run.kept.items.values()), said.append)
        averages = Averages()
        context = run.context(0, averages)
        run.set_rates(0, 0)
        times = []
        with tensor_floats(True), run.seeded(0), run.observed_rates.watched(), run.stepping(averages, stray) as take:
            run.model.train()
            run.defense.begin_epoch(run.model, context)
            for images, labels, told in run.steps(context):
                take(images, labels, told)
                times.append(self.wait())
        if not run.graphs.replayed:
            raise RuntimeError(f"no step was a replay: {' '.join(said)}")
        replays = np.diff(times)[-(run.graphs.replayed - 1) :]
        self.milliseconds[f"{name}: recorded"] = 1e3 * float(np.median(replays))
        note = f"{run.graphs.replayed} of {run.steps_per_epoch} steps were replays"
        return Found(self.milliseconds[f"{name}: recorded"], "ms", note=note)

    def stage(self, stage: str, title: str, half: bool, size: int) -> Found:
        """Seconds of a part of AutoAttack on what the parts before it left standing, and how many it leaves."""
        before = self.standing.get(f"{title}/{self.previous(stage)}")
        model, split = self.on(self.device), self.split.to(self.device)
        fast = folded(model, split.images(slice(0, 8))) if half else None
        target = Target(model, split, batch_size=size, half=half, tf32=half, search_model=fast)
        if before is None:
            predicted = target.predict(split.images(slice(None)))
            before = set((predicted == split.labels).nonzero().flatten().tolist())
        rows = torch.tensor(sorted(before), dtype=torch.int64, device=self.device)
        started, left = self.wait(), []
        with full_float32():
            for block in rows.split(size) if len(rows) else ():
                images, labels = target.samples(block)
                draws = Draws(0, "autoattack/linf", split.positions[block.cpu().numpy()])
                view = ModelView(fast or model, half).eval()
                problem = Problem(view, images, labels, ThreatModel("linf", "8/255"), draws)
                with target.searching():
                    perturbed = self.attack(stage).perturb(problem)
                wrong = target.fooled(problem.threat.project(perturbed, images), labels)
                left += block[~wrong].tolist()
        seconds = self.wait() - started
        self.standing[f"{title}/{stage}"] = set(left)
        plain = self.standing.get(f"fp32 at 256/{stage}", set(left))
        apart = len(plain ^ set(left)) / len(split)
        note = f"{len(before)} before, {len(left)} stand, {len(plain ^ set(left))} other than in fp32"
        if apart > FEW:
            raise RuntimeError(f"the robust sets differ: {note}")
        return Found(seconds, "s", note=note)

    def attack(self, stage: str) -> Any:
        """A part of AutoAttack; as a toy, with few steps."""
        part = STAGES[stage]
        if not self.toy:
            return part
        return replace(part, queries=12) if stage == "square" else replace(part, steps=4, **self.targets(stage))

    @staticmethod
    def targets(stage: str) -> dict[str, int]:
        """Of the toy's targeted parts."""
        return {} if stage == "apgd-ce" else {"targets": 1}

    @staticmethod
    def previous(stage: str) -> str:
        """The part before."""
        order = list(STAGES)
        return order[order.index(stage) - 1] if stage != order[0] else ""

    def published(self) -> Found:
        """Seconds of the published package, and the images that stand there and not here."""
        try:
            import pyautoattack
        except ImportError:
            raise NotHereError("pyautoattack is not installed") from None
        if self.toy:
            raise NotHereError("takes minutes on a processor")
        model, split = self.on(self.device), self.split.to(self.device)
        images, labels = split.images(slice(None)), split.labels
        with tensor_floats(True):
            started = self.wait()
            adversary = pyautoattack.AutoAttack(model, norm="Linf", eps=8 / 255, device=self.device, verbose=False)
            found = adversary.run_standard_evaluation(images, labels, batch_size=256)
            perturbed = found[0] if isinstance(found, tuple) else found
            seconds = self.wait() - started
        right = Target(model, split).predict(perturbed) == labels
        theirs = set(right.nonzero().flatten().tolist())
        ours = self.standing.get("fp32 at 256/square", theirs)
        note = f"{len(theirs)} stand, {len(theirs ^ ours)} other than here"
        if len(theirs ^ ours) > FEW * len(split):
            raise RuntimeError(f"the robust sets differ: {note}")
        return Found(seconds, "s", note=note)


class Work(Launches):
    """Counts floating point operations as well, of convolutions and matrix products."""

    flops = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = super().__torch_dispatch__(function, types, arguments, options)
        if function.overloadpacket in flop_registry:
            self.flops += flop_registry[function.overloadpacket](*arguments, **(options or {}), out_val=result)
        return result


def logits_and_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradients of cross-entropy with respect to the images."""
    leaf = images.clone().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        (gradient,) = torch.autograd.grad(cross_entropy(logits, labels, reduction="sum"), leaf)
    return logits.detach(), gradient


@contextmanager
def drawn_on_the_cpu() -> Iterator[None]:
    """All random numbers come from one generator of the CPU, in order, and are then moved."""
    source = torch.Generator().manual_seed(0)

    def moved(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def drawn(*given: Any, generator: Any = None, device: Any = "cpu", **options: Any) -> Tensor:
            return draw(*given, generator=source, **options).to(device)

        return drawn

    originals = {name: getattr(torch, name) for name in ("rand", "randn", "randint", "randperm")}
    with patch.multiple(torch, **{name: moved(draw) for name, draw in originals.items()}):
        yield


def done(item: Item) -> Outcome:
    """An item's outcome, whatever happens in it."""
    name, measure = item
    started = time.perf_counter()
    try:
        found = measure()
        status = "passed" if found.passed else "failed"
        outcome = Outcome(name, status, found.value, found.unit, found.gate, found.note)
    except (NotHereError, ImportError) as reason:
        outcome = Outcome(name, "skipped", note=str(reason))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())[:300]
        outcome = Outcome(name, "failed", note=f"{type(error).__name__}: {text} ({place.name}, line {place.lineno})")
    outcome.seconds = time.perf_counter() - started
    return outcome


def line(outcome: Outcome) -> str:
    """A row of the table."""
    value = "" if outcome.value is None else f"{outcome.value:.4g} {outcome.unit}"
    gate = "" if outcome.gate is None else f"{outcome.gate:.3g}"
    return f"{outcome.status:8} {outcome.name:40} {value:28} {gate:>8} {outcome.seconds:6.1f} s  {outcome.note}"


def run(device: torch.device, toy: bool, out: Path, data: str | None = None, checkpoint: Path | None = None) -> bool:
    """Do every item, print the table and write the file; returns whether none failed."""
    bench = Bench(device, toy, data, checkpoint)
    name = torch.cuda.get_device_name(device) if bench.cuda else "CPU"
    report: dict[str, Any] = {"device": name, "torch": torch.__version__, "toy": toy, "items": []}
    print(f"{name}\n{'':8} {'':40} {'value':28} {'gate':>8}")  # noqa: T201
    for items in (bench.ceilings(), bench.correctness(), bench.speed()):
        for item in items:
            outcome = done(item)
            report["items"].append(asdict(outcome))
            print(line(outcome), flush=True)  # noqa: T201
            write_text(out, json.dumps(report, indent=1))
    report["fastest"] = fastest(bench.milliseconds)
    write_text(out, json.dumps(report, indent=1))
    failed = [one["name"] for one in report["items"] if one["status"] == "failed"]
    print(f"fastest: {report['fastest']}\nfailed: {', '.join(failed) or 'none'}")  # noqa: T201
    return not failed


def fastest(milliseconds: dict[str, float]) -> dict[str, str]:
    """Of each defense, which way of its steps took least."""
    ways = {name: [title for title in milliseconds if title.startswith(f"{name}: ")] for name in TIMED}
    return {name: min(found, key=milliseconds.__getitem__) for name, found in ways.items() if found}


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--toy", action="store_true", help="everything as small as possible")
    parser.add_argument("--data", help="a dataset's name or npz:PATH")
    parser.add_argument("--checkpoint", type=Path, help="a run folder of `bench train`")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    chosen = parser.parse_args()
    if not run(choose_device(chosen.device), chosen.toy, chosen.out, chosen.data, chosen.checkpoint):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
