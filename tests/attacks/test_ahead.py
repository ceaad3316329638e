"""On a device that the processor runs ahead of, attacks wait for nothing between two looks, and find the same."""

import pytest
import torch

from bench.attacks._survivors import Attempt, WorkingSet, leave, usual
from bench.attacks.apgd_ce import APGDCE
from bench.attacks.apgd_t import APGDT
from bench.attacks.autoattack import cascade
from bench.attacks.fab import FAB
from bench.attacks.square import Square
from bench.catalogue.suites import AttackCell, Suite
from bench.data.splits import Split
from bench.engine.run import run_suite
from bench.engine.target import Target
from bench.interfaces import draws
from benchmarks.evaluation_launches import counts, searches
from tests.attacks.test_apgd import network, problem_of, standing


@pytest.fixture
def ahead(monkeypatch):
    """Calls a function as if the processor ran ahead of itself."""

    def call(function, *given):
        with monkeypatch.context() as patch:
            patch.setattr(draws, "ASYNCHRONOUS", {"cpu"})
            return function(*given)

    return call


PARTS = APGDCE(steps=12, restarts=2), APGDT(steps=12, targets=1), FAB(steps=12, targets=1), Square(queries=60)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_part_of_autoattack_finds_the_same(norm, ahead):
    problem, other = (problem_of(network(), norm, count=20) for _ in range(2))
    found, same = cascade(problem, PARTS), ahead(cascade, other, PARTS)
    assert 0 < standing(problem, found).sum() < 20
    assert torch.equal(problem.notes["stage"], other.notes["stage"])
    # With others in the batch, kernels of some processors round otherwise.
    torch.testing.assert_close(found, same, rtol=0, atol=1e-5)


def test_no_step_waits_between_two_looks():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)).requires_grad_(False).eval()
    model[1].weight.mul_(1e-3)
    model[1].bias.copy_(torch.tensor([9.0, 3.0, 2.0, 1.0]))
    parts = searches(model, torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64))
    tried = ("apgd-ce linf", "fab linf", "square linf", "square l2", "pgd linf, by the engine")
    assert {name: counts(parts[name], True)[1] for name in tried} == dict.fromkeys(tried, 0)
    # What is counted is there where a step looks.
    assert counts(parts["square linf"], False)[1] >= 1


def test_sizes_are_few_and_hardly_larger_than_asked_for():
    sizes = {count: usual(count) for count in range(2049)}
    assert sizes[0] == 0 and sizes[1] == 16 and sizes[2048] == 2048
    assert all(count <= size <= max(count + 15, 1.25 * count) for count, size in sizes.items())
    assert len(set(sizes.values())) < 30


def test_samples_that_are_done_fill_a_set_up_and_are_noted_once(ahead):
    done = torch.arange(50) % 5 > 0  # 10 of 50 are at work
    run = WorkingSet(torch.arange(50), done, torch.rand(50, 1, 1, 1), torch.rand(50))
    found = Attempt(torch.full((50, 1, 1, 1), -1.0), torch.full((50,), -1.0), torch.zeros(50, dtype=torch.bool))
    left = ahead(leave, run, found)
    assert len(left.rows) == 16 and int((~left.done).sum()) == 10
    gone = sorted(set(range(50)) - set(left.rows.tolist()))
    assert torch.equal(found.images[gone], run.best[gone]) and torch.equal(found.value[gone], run.highest[gone])
    assert found.fooled[gone].all() and found.fooled.sum() == 34
    left.note(found)
    assert torch.equal(found.images, run.best) and torch.equal(found.fooled, done)
    assert len(leave(run, found).rows) == 10  # where looking costs nothing, all leave


def evaluated(model, split, suite, convention):
    return run_suite(Target(model, split), suite, convention=convention)


@pytest.mark.parametrize("convention", ["any", "final"])
def test_the_engine_finds_the_same(convention, ahead):
    """In float64, where rounding decides about no image; cells end between looks, and restarts follow."""
    model = Double(network().double())
    pixels = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    split = Split(pixels, model(pixels.float() / 255).argmax(1))
    cells = (
        AttackCell("PGD-5", "pgd", "linf", "0.004", {"steps": 5}),
        AttackCell("PGD-19x3", "pgd", "linf", "0.004", {"steps": 19, "restarts": 3}),
        AttackCell("C&W", "cw", "linf", "0.004", {"steps": 11}),
        AttackCell("DeepFool", "deepfool", "l2", "0.03", {"steps": 5}),
    )
    suite = Suite("test", 1, "", cells, {})
    one, same = (call(evaluated, model, split, suite, convention) for call in (lambda run, *given: run(*given), ahead))
    for cell in cells:
        first, second = one.attacks[cell.label], same.attacks[cell.label]
        assert 0 < (first.prediction != one.label).sum() < 30
        assert ((first.prediction != one.label) == (second.prediction != one.label)).all()


class Double(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images.double())
