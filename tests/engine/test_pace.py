"""Blocks are kept in pieces that take about twenty seconds, and no outcome depends on them."""

from dataclasses import replace

import numpy as np
import pytest

from bench.engine import group_run
from bench.engine.pace import Pace
from bench.evaluation.evaluate import evaluate
from bench.evaluation.request import EvaluationRequest
from bench.results.file import content_digest
from bench.system.blocks import PartStore


@pytest.mark.parametrize(
    ("seconds", "waiting", "images"),
    [
        (None, 256, 256),
        (0.1, 256, 256),  # 25.6 s: twice as long would be taken too
        (0.157, 256, 64),  # 40.2 s: 127 take 20 s
        (1.0, 256, 16),
        (1.0, 40, 40),
        (100.0, 256, 8),
        (100.0, 3, 3),
    ],
)
def test_so_many_images_are_taken_at_once(seconds, waiting, images):
    assert Pace(seconds).images(waiting) == images


def test_a_guess_is_a_quarter_of_the_most_and_a_gpu_takes_an_eighth_of_a_batch():
    assert Pace.guessed(0.01, 400, 256, on_gpu=False) == Pace(1.0, 8)
    assert Pace.guessed(None, 400, 2048, on_gpu=True) == Pace(None, 256)
    pace = Pace(1.0)
    pace.took(10.0, 20)
    assert pace.seconds == 0.5


class Stop(KeyboardInterrupt):
    """In the middle of a block."""


def test_a_block_in_pieces_goes_on_where_it_was_stopped_and_comes_to_the_same(digits_run, tmp_path, monkeypatch):
    """Also from parts that another pace left, and from those of whole blocks."""
    asked = EvaluationRequest("linf", checkpoint=digits_run, limit=12, batch_size=6, probes=0, out=tmp_path / "r.h5")
    whole, _ = evaluate(replace(asked, out=tmp_path / "whole.h5"))
    run_block, rows = group_run.GroupRun.run_block, []

    def run_piece(run, block):
        if len(rows) == stop:
            raise Stop
        rows.append(tuple(block))
        return run_block(run, block)

    monkeypatch.setattr(group_run.GroupRun, "run_block", run_piece)
    for end, size in ((1, 6), (4, 2), (6, 1)):  # a whole block, then pieces of two, then of one
        stop = end
        monkeypatch.setattr(Pace, "images", lambda pace, waiting, size=size: min(size, waiting))
        with pytest.raises(Stop):
            evaluate(asked)
    (parts,) = tmp_path.glob(".r.h5.*.parts")
    kept = sorted(path.stem for path in parts.glob("00*"))
    assert [len(PartStore.at(parts).get(name)["index"]) for name in kept] == [len(block) for block in rows]
    (damaged,) = np.flatnonzero([len(name) == 15 for name in kept])[:1]
    PartStore.at(parts).put(kept[damaged], {"index": np.array([], np.int64)})
    repeated = rows[damaged]
    assert kept[0] == "000-00000" and {len(name) for name in kept} == {9, 15}, "whole blocks, and pieces of blocks"
    stop = None
    result, _ = evaluate(asked)
    right = np.flatnonzero(whole.clean_prediction == whole.label)
    assert len(rows) > 6 and sorted(row for block in rows for row in block) == sorted([*[*right] * 3, *repeated])
    assert content_digest(result) == content_digest(whole)
