"""How attacks search: what is asked for, what it comes to on a device, and what the record says."""

import json

import pytest
import torch
from torch import nn

from bench.errors import BenchError
from bench.evaluation.evaluate import evaluate
from bench.evaluation.prepare import prepare
from bench.evaluation.request import EvaluationRequest, answers, default_batch_size, search_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)

MODELS = """
import torch
from torch import nn


class Network(nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.convolution, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        with torch.no_grad():
            self.norm.running_mean.fill_(0.3)
        if kind == "plain":
            self.norm = nn.Identity()

    def forward(self, images):
        hidden = self.norm(self.convolution(images))
        if self.kind == "reads statistics":
            hidden = hidden + self.norm.running_mean.mean()
        return self.head(hidden.relu().mean((2, 3)))


def folds():
    return Network("folds").eval()


def refuses():
    return Network("reads statistics").eval()


def plain():
    return Network("plain").eval()
"""


@pytest.fixture
def asked(tmp_path, monkeypatch, blobs):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text(MODELS)

    def request(model="folds", **options):
        given = {"dataset": blobs, "limit": 12, "probes": 0, "device": "cpu", "out": tmp_path / "r.h5", **options}
        return EvaluationRequest("quick", model=f"m.py:{model}", **given)

    return request


def test_what_a_precision_comes_to():
    assert search_precision("auto", CPU) == "fp32" and search_precision("auto", CUDA) == "tf32"
    assert search_precision("tf32", CUDA) == "tf32" and search_precision("bf16", CPU) == "bf16"
    with pytest.raises(BenchError, match=r"tf32 exists on CUDA devices only, not on cpu\. Choose fp32, fp32-folded or"):
        search_precision("tf32", CPU)
    with pytest.raises(BenchError, match="unknown precision 'half'"):
        search_precision("half", CPU)


def test_how_many_images_are_taken_at_once():
    shapes = [(1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 224, 224), (3, 1024, 1024)]
    assert [default_batch_size(CUDA, shape) for shape in shapes] == [2048, 2048, 512, 41, 16]
    assert {default_batch_size(CPU, shape) for shape in shapes} == {256}


def test_a_record_answers_what_it_may_have_come_to():
    assert [answers(found, "auto") for found in ("fp32", "tf32", "bf16", None)] == [True, True, False, False]
    assert answers("fp32", "fp32-folded") and not answers("fp32-folded", "fp32")
    assert answers("bf16", "bf16") and not answers("tf32", "bf16")


def test_the_default_on_a_processor_is_plain_float32(asked):
    prepared = prepare(asked())
    assert (prepared.precision, prepared.target.batch_size) == ("fp32", 256)
    assert prepared.target.models == [prepared.subject.model] and not prepared.target.searches_otherwise
    identity = prepared.identity()
    assert identity["precision"] == "fp32" and identity["batch_size"] == 256
    assert identity == prepare(asked(precision="fp32", batch_size=256)).identity()


@pytest.mark.parametrize(
    ("model", "precision", "recorded", "folded", "said"),
    [
        ("folds", "auto", "fp32", None, ""),
        ("folds", "fp32-folded", "fp32-folded", 1, ""),
        ("folds", "bf16", "bf16", 1, ""),
        ("refuses", "fp32-folded", "fp32", None, "in fp32: a copy with BatchNorm folded computes something else"),
        ("refuses", "bf16", "bf16", 0, "in bf16: a copy with BatchNorm folded computes something else"),
        ("plain", "fp32-folded", "fp32", None, "in fp32: it has no BatchNorm"),
        ("plain", "bf16", "bf16", 0, ""),
    ],
)
def test_the_record_says_what_happened_and_a_refusal_is_said(asked, caplog, model, precision, recorded, folded, said):
    result, _ = evaluate(asked(model, precision=precision))
    evaluation = json.loads(json.dumps(dict(result.run["evaluation"])))
    assert evaluation["precision"] == recorded
    assert evaluation.get("folded") == folded
    assert evaluation["batch_size"] == 256
    assert [record.getMessage().partition("as it is, ")[2] for record in caplog.records] == ([said] if said else [])


def test_on_cuda_the_search_is_folded_and_coarse_by_default(asked, monkeypatch):
    """The device is the processor, which takes itself for CUDA where it is asked for precision and size."""
    monkeypatch.setattr("bench.evaluation.prepare.search_precision", lambda name, device: search_precision(name, CUDA))
    monkeypatch.setattr(
        "bench.evaluation.prepare.default_batch_size", lambda device, shape: default_batch_size(CUDA, shape)
    )
    target = prepare(asked()).target
    assert target.tf32 and not target.half and target.batch_size == 2048
    assert target.search_model is not None
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in target.search_model.modules())
    result, _ = evaluate(asked())
    evaluation = result.run["evaluation"]
    assert (evaluation["precision"], evaluation["folded"], evaluation["batch_size"]) == ("tf32", 1, 2048)


def test_the_command_refuses_tf32_on_a_processor_in_one_line(asked, bench, blobs):
    options = ("--suite", "quick", "--dataset", blobs, "--device", "cpu", "--precision", "tf32")
    (code, output) = bench("eval", "--model", "m.py:folds", *options)
    assert code == 2
    assert output.strip() == (
        "Error: precision tf32 exists on CUDA devices only, not on cpu. Choose fp32, fp32-folded or bf16."
    )
