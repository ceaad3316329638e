"""Models of one's own: found by FILE.py:FACTORY, loaded without executing weights, checked against the contract."""

import pytest
import torch
from torch import nn

from bench.interop.contract import check_contract
from bench.interop.state_dicts import load_weights
from bench.interop.subjects import ModelReference
from tests.support.refusals import refusal

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
def shown():
    return torch.rand(16, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def test_a_factory_with_weights(file, tmp_path):
    torch.manual_seed(0)
    trained = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    for wrap in (lambda state: state, lambda state: {"state_dict": {f"module.{key}": v for key, v in state.items()}}):
        torch.save(wrap(trained.state_dict()), tmp_path / "w.pt")
        subject = ModelReference(model=f"{file}:make", weights=tmp_path / "w.pt").load(CPU, None)
        images = torch.rand(4, 3, 2, 2)
        assert torch.equal(subject.model(images), trained(images))
        assert not subject.model.training
        assert subject.name == "w"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"net": state, "acc": 3, "epoch": 7},
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}, "param_groups": []}},
        lambda state: {"state_dict_ema": state},
        lambda state: {"state_dict": {"model": state}, "optimizer": {0: torch.zeros(1)}},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}, "ema": None},
        lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
    ],
)
def test_wrappers_of_training_scripts_are_removed(wrap, tmp_path):
    trained, model = nn.Linear(2, 2), nn.Linear(2, 2)
    torch.save(wrap(trained.state_dict()), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model.weight, trained.weight) and torch.equal(model.bias, trained.bias)


STATE = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}
ITSELF = {"epoch": 3}
ITSELF["model"] = ITSELF


@pytest.mark.parametrize(
    ("held", "told"),
    [
        (
            {"state_dict": STATE, "state_dict_ema": STATE},
            ("It holds: 'state_dict', 'state_dict_ema'", "Save the one you mean: torch.save(checkpoint['state_dict']"),
        ),
        ({"acc": 3, "teacher": STATE}, ("It holds: 'acc', 'teacher'", "mean: torch.save(checkpoint['teacher']")),
        ({"net": {"epoch": 3}}, ("It holds: 'epoch'. None is one",)),
        ({"epoch": 3, 0: torch.zeros(1)}, ("It holds: 'epoch', 0. None is one",)),
        (ITSELF, ("It holds: 'epoch', 'model'. None is one",)),
        (torch.zeros(2), ("but a Tensor",)),
    ],
)
def test_of_several_state_dictionaries_or_none_none_is_chosen(held, told, tmp_path):
    torch.save(held, tmp_path / "w.pt")
    refusal(lambda: load_weights(nn.Linear(2, 2), tmp_path / "w.pt"), f"{tmp_path / 'w.pt'} is not a state dict", *told)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("mine.py", "is not FILE.py:FACTORY"),
        ("nowhere.py:make", "no Python file at"),
        ("{file}:mkae", "has no function or class 'mkae'. It has: make, wrong, fails"),
        ("{file}:wrong", "made a int; it must return a torch.nn.Module"),
        ("{file}:fails", "failed: RuntimeError: no such thing (mine.py:12)"),
    ],
)
def test_a_bad_reference_is_one_line(file, reference, message):
    refusal(lambda: ModelReference(model=reference.format(file=file)).load(CPU, None), message)


def test_weights_that_do_not_fit_or_would_execute_code_are_refused(tmp_path):
    model = nn.Linear(2, 2)
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "other.pt")
    refusal(lambda: load_weights(model, tmp_path / "other.pt"), "does not fit the model")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    refusal(lambda: load_weights(model, tmp_path / "module.pt"), "nothing in it was executed")
    refusal(lambda: load_weights(model, tmp_path / "none.pt"), "no weights at")


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
        (lambda x: x[:5], "returned (5, 3) for 16 images"),
        (lambda x: x.sum(1), "returned (16,) for 16 images"),
        (lambda x: x.mul_(0.5), "changes its input in place"),
        (lambda x: {"logits": x}, "returned dict for 16 images"),
        (lambda x: x @ torch.ones(7, 3), "cannot classify images of shape (16, 3, 2, 2): RuntimeError"),
    ],
)
def test_outputs_that_mean_nothing_are_errors(answer, message, shown):
    refusal(lambda: check_contract(Fixed(answer), shown, 3), message)


class TwiceSquared(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(context, gradient):
        raise NotImplementedError("no way back")


def here(function):
    """Where a one-line function says that it failed."""
    return f" (test_models.py:{function.__code__.co_firstlineno})"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda x: torch.from_numpy(x.numpy()), "RuntimeError: Can't call numpy() on Tensor that requires grad."),
        (lambda x: (2 * x).sigmoid().mul_(2) if x.requires_grad else x, "RuntimeError: one of the variables needed"),
        (lambda x: TwiceSquared.apply(x), "NotImplementedError: no way back"),
    ],
)
def test_a_model_that_cannot_be_differentiated_is_an_error_where_it_is_attacked(answer, reason, shown):
    check_contract(Fixed(answer), shown, 3)
    told = f"the model cannot be differentiated: {reason}"
    refusal(lambda: check_contract(Fixed(answer), shown, 3, attacked=True), told)


def test_the_line_of_ones_own_that_failed_is_named(shown):
    def answer(x): return torch.from_numpy(x.numpy())  # fmt: skip

    refusal(lambda: check_contract(Fixed(answer), shown, 3, attacked=True), here(answer))


@pytest.mark.parametrize(
    "answer",
    [lambda x: x.detach(), torch.no_grad()(lambda x: 2 * x), lambda x: x.round(), lambda x: torch.ones(len(x), 3)],
)
def test_a_model_without_gradients_may_be_attacked(answer, shown):
    check_contract(Fixed(answer), shown, 3, attacked=True)
