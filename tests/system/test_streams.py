"""Whoever stops reading standard error, or closed it, ends no work."""

import os
import subprocess
import sys
from contextlib import suppress

from bench.cli import echo
from bench.launching import program
from bench.results.file import write_result
from bench.training.request import TrainingRequest
from bench.training.train import train
from tests.support.example_results import example, with_run


def test_who_stops_reading_ends_no_training(tmp_path, blobs, monkeypatch):
    """Standard error is a pipe that nobody reads any more, as after `2>&1 | head`."""
    ours, theirs = os.pipe()
    os.close(ours)
    with monkeypatch.context() as patch:
        unread = os.fdopen(theirs, "w")
        patch.setattr(sys, "stderr", unread)
        request = TrainingRequest("st", blobs, "cnn-small", protocol={"epochs": 2}, folder=tmp_path / "run")
        assert train(request) == tmp_path / "run"
        echo("and a sweep goes on", err=True)
        assert sys.stderr.name == os.devnull
        sys.stderr.close()
    with suppress(BrokenPipeError):
        unread.close()
    assert (tmp_path / "run" / "history.jsonl").read_text().count("\n") == 2


def test_a_closed_stream_is_no_fault(tmp_path):
    files = [tmp_path / "A.h5", tmp_path / "B.h5"]
    for file in files:
        write_result(with_run(example(), model=file.stem), file)
    words = ["sh", "-c", 'exec "$@" 2>&-', "sh", *program(), "compare", *map(str, files)]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout.partition(",")[0]) == (0, "In the column AA"), found
