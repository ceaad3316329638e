"""Adapters: what each computes, by hand; attacks through a resize against a closed form; which one a refusal names."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import bench as face
from bench.interop.adapters import adapted, chosen_adapters, read_adapter
from bench.interop.contract import check_contract
from bench.leaderboard.tables.build import build_table
from bench.system.progress import EvaluationProgress
from tests.support.example_results import example, with_run
from tests.support.refusals import refusal

IMAGES = torch.rand(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))


class Gives(nn.Module):
    """A model that gives what a function makes of its images."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, images):
        return self.answer(images)


def through(answer, *texts, images=IMAGES):
    """What a model that gives `answer` gives in adapters."""
    return adapted(Gives(answer), chosen_adapters((), texts))(images)


# ------------------------------------------------------------------------------------------- what each computes


def test_normalize_takes_a_number_per_channel_or_one_for_all():
    expected = torch.stack([(IMAGES[:, 0] - 0.5) / 0.25, (IMAGES[:, 1] - 0.1) / 2], 1)
    torch.testing.assert_close(through(lambda x: x, "normalize=0.5,0.1:0.25,2"), expected)
    torch.testing.assert_close(through(lambda x: x, "normalize=0.5:2"), (IMAGES - 0.5) / 2)
    told = "normalize is of 3 channels, the images have 2"
    refusal(lambda: through(lambda x: x, "normalize=imagenet"), told)


def test_resize_by_hand():
    """Two pixels to four: those at the ends stay, between them are 3/4 and 1/4 of each. Back to two: their triangle."""
    line = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    larger = through(lambda x: x, "resize=1x4", images=line)
    torch.testing.assert_close(larger.flatten(), torch.tensor([0.0, 0.25, 0.75, 1.0]))
    smaller = through(lambda x: x, "resize=1x2", images=torch.tensor([0.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 4))
    torch.testing.assert_close(smaller.flatten(), torch.tensor([3 / 7, 1 / 7]))
    nearest = through(lambda x: x, "resize=1x4,nearest", images=line)
    assert nearest.flatten().tolist() == [0, 0, 1, 1]
    assert through(lambda x: x, "resize=3") is IMAGES  # of that size already


def test_outputs_are_taken_by_key_attribute_and_position():
    logits = IMAGES.flatten(1)[:, :3]
    for output, key in (
        ({"scores": logits, "loss": 1}, "scores"),
        ((1, logits), "1"),
        ([logits], "0"),
        (SimpleNamespace(logits=logits), "logits"),
    ):
        assert through(lambda x, output=output: output, f"output={key}") is logits
    told = "the model's output has no 'logits' (--adapt output=logits): it has 0, 1."
    refusal(lambda: through(lambda x: (1, logits), "output=logits"), told)
    refusal(lambda: through(lambda x: logits, "output=logits"), "it has a Tensor.")


def test_one_logit_is_two():
    logit = IMAGES.flatten(1)[:, :1] - 0.5
    for shape in (logit, logit[:, 0]):
        logits = through(lambda x, shape=shape: shape, "binary")
        assert torch.equal(logits, torch.cat([torch.zeros(4, 1), logit], 1))
        # The cross-entropy of the two is the logistic loss of the one.
        labels = torch.tensor([0, 1, 1, 0])
        expected = functional.binary_cross_entropy_with_logits(logit[:, 0], labels.float())
        torch.testing.assert_close(functional.cross_entropy(logits, labels), expected)
    refusal(lambda: through(lambda x: x.flatten(1), "binary"), "binary takes one logit per image, the model returns 18")


def test_classes_are_outputs_in_an_order():
    outputs = IMAGES.flatten(1)
    assert torch.equal(through(lambda x: outputs, "classes=7,2-4"), outputs[:, [7, 2, 3, 4]])
    refusal(lambda: through(lambda x: outputs, "classes=1,18"), "names output 18, the model's are 0 to 17")


@pytest.mark.parametrize(("name", "dtype"), [("half", torch.float16), ("bfloat16", torch.bfloat16)])
def test_weights_and_products_in_half_logits_and_gradients_in_float32(name, dtype):
    torch.manual_seed(0)
    layer = nn.Linear(18, 3)
    network = nn.Sequential(nn.Flatten(), layer)
    leaf = IMAGES.clone().requires_grad_()
    logits = adapted(network, [read_adapter(name)])(leaf)
    expected = functional.linear(IMAGES.flatten(1).to(dtype), layer.weight.to(dtype), layer.bias.to(dtype)).float()
    assert torch.equal(logits, expected) and not torch.equal(logits, network(IMAGES))
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), leaf)
    assert gradient.dtype == layer.weight.dtype == torch.float32
    assert torch.equal(gradient, layer.weight[0].to(dtype).float().view(2, 3, 3).expand_as(IMAGES))


def test_images_pass_them_in_one_order_whatever_order_they_are_given_in():
    """The mean of the second output of three, of images that were resized and then normalised, in half."""
    texts = ["classes=2,0", "output=1", "half", "normalize=0.5:0.5", "resize=6"]
    weights = torch.arange(3.0)

    def answer(images):
        assert images.shape == (4, 2, 6, 6) and images.dtype == torch.float16
        return None, images.mean((1, 2, 3))[:, None] * weights.half()

    larger = functional.interpolate(IMAGES, (6, 6), mode="bilinear")
    expected = ((larger - 0.5) / 0.5).mean((1, 2, 3))[:, None] * weights[[2, 0]]
    for order in (texts, texts[::-1]):
        torch.testing.assert_close(through(answer, *order), expected, rtol=0.01, atol=0.01)
        assert list(map(str, chosen_adapters((), order))) == [*texts[::-1][:3], "output=1", "classes=2,0"]


def test_what_is_given_replaces_what_is_declared():
    declared = ("resize=224,bicubic", "normalize=0.5:0.5", "output=logits")

    def chosen(*given):
        return [str(one) for one in chosen_adapters(declared, given)]

    assert chosen("resize=32", "half") == ["resize=32", "normalize=0.5:0.5", "half", "output=logits"]
    assert chosen("none", "output=0") == ["output=0"]
    assert chosen("none") == []


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["resize=big"], "adapter 'resize=big' is not resize=SIZE or resize=HEIGHTxWIDTH"),
        (["resize=0"], "is not resize=SIZE"),
        (["resize=8,linear"], "with ,bicubic or ,nearest"),
        (["normalize=0.5"], "is not normalize=MEAN:STD"),
        (["normalize=0.5,0.5:0.2"], "is not normalize=MEAN:STD"),
        (["normalize=0.5:0"], "is not normalize=MEAN:STD"),
        (["normalize=nan:1"], "is not normalize=MEAN:STD"),
        (["classes=1"], "is not classes=3,7,10-12"),
        (["classes=1,1"], "an output for each class of the dataset, two or more, none twice"),
        (["classes=9-7"], "is not classes=3,7,10-12"),
        (["half=yes"], "adapter 'half=yes' is not half."),
        (["output"], "is not output=KEY"),
        (["logits"], "unknown adapter 'logits'. Choose from: bfloat16, binary, classes, half, none, normalize, output"),
        (["half", "bfloat16"], "--adapt half and bfloat16 do not go together. Give one."),
        (["resize=8", "resize=9"], "--adapt resize=8 and resize=9 do not go together"),
    ],
)
def test_adapters_that_cannot_be_read(texts, told):
    refusal(lambda: chosen_adapters((), texts), told)


# ----------------------------------------------------------------------------------------- attacks through them


def test_pgd_through_a_resize_meets_the_closed_form(tmp_path, monkeypatch):
    """A linear model of enlarged images is one of the dataset's pixels: w of w·R(x) there is R^T w here.

    Under linf the least margin in a ball is that of x less eps times the l1 norm of R^T w, as far as pixels stay in
    [0, 1]; R^T w is measured without gradients, by enlarging each pixel alone.
    """
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(2, 7 * 7, generator=generator)
    model = nn.Sequential(nn.Flatten(), nn.Linear(49, 2, bias=False)).eval()
    model[1].weight.data.copy_(weight)
    enlarged = functional.interpolate(torch.eye(16).view(16, 1, 4, 4), (7, 7), mode="bilinear")
    pulled = enlarged.flatten(1) @ weight.T  # (16, 2): of each pixel
    direction = (pulled[:, 1] - pulled[:, 0]).double()
    pixels = torch.randint(60, 196, (40, 1, 4, 4), generator=generator, dtype=torch.uint8)
    margin = pixels.flatten(1).double() / 255 @ direction
    labels = (margin > 0).long()
    # In the middle of two samples' critical radii, so that no rounding decides.
    radii = (margin.abs() / direction.abs().sum()).sort().values
    epsilon = float((radii[19] + radii[20]) / 2)
    assert 0 < epsilon < 59 / 255 and radii[20] - radii[19] > 1e-4
    options = {"epsilon": str(epsilon), "adapt": "resize=7", "probes": 0, "quiet": True, "convention": "final"}
    result = face.evaluate(model, (pixels, labels), "quick", **options)
    standing = (margin.abs() / direction.abs().sum() > epsilon).numpy()
    assert standing.sum() == 20
    for record in result.attacks.values():
        np.testing.assert_array_equal(record.prediction == result.label, standing)
    # And the images themselves: the optimum is one corner of the ball.
    around = adapted(model, [read_adapter("resize=7")])
    leaf = (pixels.float() / 255).requires_grad_()
    (gradient,) = torch.autograd.grad((around(leaf) @ torch.tensor([-1.0, 1.0])).sum(), leaf)
    torch.testing.assert_close(gradient, direction.float().view(1, 1, 4, 4).expand_as(leaf), rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------ which one would fit


class Sized(nn.Module):
    def forward(self, images):
        if images.shape[-1] != 6:
            raise ValueError("Input image size (3*3) doesn't match model (6*6).")
        return images.flatten(1)[:, :3]


@pytest.mark.parametrize(
    ("model", "classes", "told"),
    [
        (
            Gives(lambda x: (x.mean(), x.flatten(1))),
            3,
            (
                "returned tuple for 4 images: it must",
                "1 (4, 18): --adapt output=1",
            ),
        ),
        (
            Gives(lambda x: SimpleNamespace(logits=x.flatten(1))),
            3,
            (
                "SimpleNamespace",
                "--adapt output=logits takes the f",
            ),
        ),
        (
            Gives(lambda x: {"loss": 1.0}),
            3,
            (
                "returned dict for 4 images",
                "It holds loss.",
            ),
        ),
        (
            Gives(lambda x: x.mean((1, 2, 3))),
            2,
            (
                "returned (4,) for 4",
                "the logit of the second of two classes: --adapt bi",
            ),
        ),
        (
            Gives(lambda x: x.mean((1, 2, 3))[:, None]),
            2,
            (
                "returns 1 classes; the dataset has 2.",
                "--adapt binary",
            ),
        ),
        (
            Gives(lambda x: x.flatten(1)),
            3,
            (
                "returns 18 classes; the dataset has 3.",
                "--adapt classes=I,J,... names",
            ),
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(18, 3)).half(), 3, ("It has weights in float16: --adapt half.",)),
        (nn.Sequential(nn.Flatten(), nn.Linear(18, 3)).bfloat16(), 3, ("in bfloat16: --adapt bfloat16.",)),
        (Sized(), 3, ("If it is made for images of another size: --adapt resize=SIZE.",)),
        (nn.Conv2d(3, 3, 3), 3, ("cannot classify images of shape (4, 2, 3, 3): RuntimeError",)),
    ],
)
def test_the_refusal_of_an_output_names_the_adapter(model, classes, told):
    line = refusal(lambda: check_contract(model.eval(), IMAGES, classes), *told)
    assert ("--adapt" in line) == ("--adapt" in " ".join(told))


# ------------------------------------------------------------------------------------- in a row, and in a notebook


def test_rows_of_one_model_are_told_apart_by_their_adapters():
    plain = with_run(example(), model="mine")
    half = with_run(example(), model="mine", adapters=["half"])
    table = build_table([plain, half])
    assert [row.name for row in table.rows] == ["mine", "mine (adapters=half)"]


class Shell:
    def __init__(self, **config):
        self.config = config


@pytest.mark.parametrize(
    ("shell", "shown"), [(Shell(IPKernelApp={}), True), (Shell(TerminalIPythonApp={}), False), (None, False)]
)
def test_a_notebook_shows_progress_though_its_output_is_no_terminal(shell, shown, monkeypatch, capsys):
    """Without widgets, as here: a bar, rewritten by carriage returns, and no control codes; elsewhere a line."""
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.delitem(sys.modules, "tqdm.auto")
    progress = EvaluationProgress()
    progress("PGD-20", 0, 4)
    progress("PGD-20", 4, 4, 3)
    text = capsys.readouterr().err
    assert ("\r" in text) == shown and "3 of 4 stand" in text
    assert shown or text == "PGD-20: 3 of 4 stand\n"
    assert "\x1b" not in text and "IProgress" not in text
    quiet = EvaluationProgress(quiet=True)
    quiet("PGD-20", 0, 4)
    assert capsys.readouterr().err == ""
