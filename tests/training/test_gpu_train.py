"""The script for a borrowed GPU runs from end to end, in toy size on a CPU, and leaves its figures."""

import json

from benchmarks.gpu_train import PAPER, main


def test_the_script_for_a_borrowed_gpu_runs_and_writes_what_it_found(tmp_path, capsys):
    found = main(["--device", "cpu", "--toy", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "gpu_train.json").read_text()) == found
    for reading in ("mean", "sum"):
        assert found[reading].keys() == PAPER.keys() | {"seconds_an_epoch", "history"}
        angles = {name: found[reading]["history"][-1][name] for name in ("mean_separation", "min_separation")}
        assert all(abs(found[reading][name] - value) < 1.0 for name, value in angles.items())
        assert found[reading]["ce"] > 0
    assert found["protocol"]["epochs"] == 1
    assert set(found["protocol"]["robust"]) == {"FGSM", "PGD-20"}
    assert all(robust <= found["protocol"]["clean"] for robust in found["protocol"]["robust"].values())
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[:4]] == ["reading", "paper", "mean", "sum"]
