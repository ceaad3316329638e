"""Models of one's own: found by FILE.py:FACTORY, loaded without executing weights, checked against the contract."""

import pytest
import torch
from torch import nn

from bench.datasets import Split
from bench.errors import BenchError
from bench.models import check_contract, from_file, load_weights

CPU = torch.device("cpu")
SOURCE = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))

def wrong():
    return 3

def fails():
    raise RuntimeError("no such thing")
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def split():
    pixels = torch.randint(0, 256, (20, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Split(pixels, torch.arange(20) % 3)


def test_a_factory_with_weights(file, tmp_path):
    torch.manual_seed(0)
    trained = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    for wrap in (lambda state: state, lambda state: {"state_dict": {f"module.{key}": v for key, v in state.items()}}):
        torch.save(wrap(trained.state_dict()), tmp_path / "w.pt")
        subject = from_file(f"{file}:make", tmp_path / "w.pt", CPU)
        images = torch.rand(4, 3, 2, 2)
        assert torch.equal(subject.model(images), trained(images))
        assert not subject.model.training
        assert subject.name == "w"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("mine.py", r"is not FILE\.py:FACTORY"),
        ("nowhere.py:make", "no Python file at"),
        ("{file}:mkae", "has no function or class 'mkae'. It has: .*make"),
        ("{file}:wrong", "made a int; it must return a torch.nn.Module"),
        ("{file}:fails", r"failed: RuntimeError: no such thing"),
    ],
)
def test_a_bad_reference_is_one_line(file, reference, message):
    with pytest.raises(BenchError, match=message) as caught:
        from_file(reference.format(file=file), None, CPU)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_or_would_execute_code_are_refused(tmp_path):
    model = nn.Linear(2, 2)
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(BenchError, match="does not fit the model"):
        load_weights(model, tmp_path / "other.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(BenchError, match="nothing in it was executed"):
        load_weights(model, tmp_path / "module.pt")
    with pytest.raises(BenchError, match="no weights at"):
        load_weights(model, tmp_path / "none.pt")


class Noisy(nn.Module):
    def forward(self, images):
        return torch.randn(len(images), 3)


class Fixed(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, images):
        return self.answer(images.flatten(1)[:, :3])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x[:, :2], "returns 2 classes; the dataset has 3"),
        (lambda x: x[:5], r"returned \(5, 3\) for 16 images"),
        (lambda x: x.sum(1), r"returned \(16,\) for 16 images"),
        (lambda x: x.mul_(0.5), "changes its input in place"),
        (lambda x: {"logits": x}, "returned dict for 16 images"),
        (lambda x: x @ torch.ones(7, 3), r"cannot classify images of shape \(16, 3, 2, 2\): RuntimeError"),
    ],
)
def test_outputs_that_mean_nothing_are_errors(answer, message, split):
    with pytest.raises(BenchError, match=message):
        check_contract(Fixed(answer), split, 3)
