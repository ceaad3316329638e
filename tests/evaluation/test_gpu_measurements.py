"""The script for a borrowed GPU does all its items on a processor, at toy size, and survives one that fails."""

import json

import pytest
import torch

from bench.catalogue.plugins import names
from benchmarks import gpu

CUDA_ONLY = "exists on CUDA only"


@pytest.fixture
def planted(monkeypatch, tmp_path):
    """One item fails; what is on disk by then."""
    out, seen = tmp_path / "gpu.json", []

    def failing(bench):
        seen.extend(json.loads(out.read_text())["items"])
        raise RuntimeError("planted")

    monkeypatch.setattr(gpu.Bench, "folding", failing)
    return out, seen


def test_every_item_reports_and_one_that_fails_stops_no_other(planted, capsys):
    out, seen = planted
    assert gpu.run(torch.device("cpu"), toy=True, out=out) is False
    report = json.loads(out.read_text())
    items = {item["name"]: item for item in report["items"]}
    assert len(items) == len(report["items"]) == 42 + len(names("defense"))
    assert seen == report["items"][: len(seen)] and len(seen) == 10
    failed = {name: item["note"] for name, item in items.items() if item["status"] == "failed"}
    assert list(failed) == ["folded under TF32"] and failed["folded under TF32"].startswith("RuntimeError: planted")
    skipped = {name for name, item in items.items() if item["status"] == "skipped"}
    assert {name for name in items if "tf32" in name or "recorded" in name} == skipped
    assert all(items[name]["value"] is not None for name in items.keys() - skipped - failed.keys())
    # Compared with itself, a processor agrees in everything but rounding.
    assert [items[f"one update of {name}"]["value"] for name in names("defense")] == [0] * len(names("defense"))
    assert items["PGD-20 verdicts against the CPU's"]["value"] == items["draws against the CPU's"]["value"] == 0
    assert 0 < items["logits, fp32 against float64"]["value"] < 1e-4 < items["logits, bf16 against float64"]["value"]
    assert set(report["fastest"]) == {"at", "adv-dpnp", "trades"}
    assert "kernels" in items["trades: ours, fp32"]["note"] and "of the peak" in items["trades: ours, fp32"]["note"]
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "failed: folded under TF32"
    assert all(name in printed for name in items)


def test_a_gate_says_what_passes():
    assert gpu.Found(2.0, gate=2.0).passed and not gpu.Found(2.1, gate=2.0).passed
    assert gpu.Found(2.1, gate=2.0, least=True).passed and not gpu.Found(1.9, gate=2.0, least=True).passed
    assert not gpu.Found(float("nan"), gate=2.0).passed and not gpu.Found(float("inf")).passed
    assert gpu.fastest({"at: plain": 3.0, "at: bf16": 1.0, "trades: fp32": 2.0}) == {
        "at": "at: bf16",
        "trades": "trades: fp32",
    }
