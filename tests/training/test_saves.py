"""States are written by a thread, when it is time to, and at any stop; no error is lost, and no finished epoch."""

import signal
import sys
import threading
import time
import traceback
from concurrent.futures import wait

import pytest
import torch

from bench.errors import BenchError
from bench.training import saves as module
from bench.training.run_folder import RunFolder
from bench.training.saves import Saves
from tests.support.refusals import raising, refusal

CONFIG = {"protocol": {"epochs": 7, "holdout": 0, "average": "none"}}


class Folder(RunFolder):
    """Notes what would be written: the epochs of its history, the weight, and if a thread did."""

    written: list

    def write(self):
        weight = self.weights["w"].item()
        self.written.append((len(self.history), weight, threading.current_thread() is not threading.main_thread()))


@pytest.fixture
def folder(tmp_path):
    made = Folder(tmp_path, CONFIG, print)
    made.written = []
    return made


@pytest.fixture
def clock(monkeypatch):
    """Seconds since the start, to set."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def trained(saves, clock, seconds, epochs, weight):
    """Epochs of so many seconds, each of which adds 1 to the weight in place."""
    for _ in range(epochs):
        clock[0] += seconds
        weight += 1
        saves.epoch_done({"epoch": int(weight)}, {"model": {"w": weight}})


def test_a_state_is_written_about_every_half_minute_and_at_the_last_epoch(folder, clock):
    weight = torch.zeros(())
    with Saves(folder, 30.0) as saves:
        trained(saves, clock, 12, 7, weight)
        assert saves.on_disk == 7  # so that the last line of a training follows its save
        weight += 100
    assert folder.written == [(3, 3.0, True), (6, 6.0, True), (7, 7.0, True)]


def test_long_epochs_are_all_written_and_none_waits(folder, clock, monkeypatch):
    release, original = threading.Event(), Folder.write
    monkeypatch.setattr(Folder, "write", lambda self: (release.wait(60), original(self)))
    with Saves(folder, 30.0) as saves:
        trained(saves, clock, 31, 1, torch.zeros(()))
        assert (folder.written, saves.on_disk) == ([], 0)  # the training went on
        release.set()
    assert folder.written == [(1, 1.0, True)]


def test_without_seconds_every_epoch_is_on_disk_before_the_next(folder, clock):
    weight = torch.zeros(())
    with Saves(folder, 0.0) as saves:
        for epoch in (1, 2):
            trained(saves, clock, 0, 1, weight)
            assert (folder.written[-1], saves.on_disk) == ((epoch, float(epoch), True), epoch)
    assert len(folder.written) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, BenchError("not finite")])
def test_a_stop_loses_no_finished_epoch(folder, clock, error):
    with pytest.raises((KeyboardInterrupt, BenchError)), Saves(folder, 30.0) as saves:
        weight = torch.zeros(())
        trained(saves, clock, 12, 2, weight)
        weight += 0.5  # of an epoch that is not finished
        raise error
    assert folder.written == [(2, 2.0, False)]


def until_the_training_waits():
    """Returns when the main thread waits for a write, inside of `concurrent.futures.wait`."""
    waiting = False
    while not waiting:
        time.sleep(0.01)
        stack = traceback.walk_stack(sys._current_frames()[threading.main_thread().ident])
        waiting = any(frame.f_code is wait.__code__ for frame, _ in stack)


@pytest.fixture
def ctrl_c_stops():
    """As in a program; workers of a test run ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_ctrl_c_while_a_state_is_written_waits_for_it(folder, clock, monkeypatch, ctrl_c_stops, seconds):
    original = Folder.write

    def interrupting(self):
        until_the_training_waits()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.2)
        original(self)

    monkeypatch.setattr(Folder, "write", interrupting)
    with pytest.raises(KeyboardInterrupt), Saves(folder, seconds) as saves:
        trained(saves, clock, 31, 1, torch.zeros(()))
    assert folder.written == [(1, 1.0, True)]


def test_an_error_of_the_thread_is_the_trainings(folder, clock, monkeypatch):
    full = BenchError("cannot write: no space")
    original = Folder.write
    monkeypatch.setattr(Folder, "write", lambda self: raising(full)() if len(self.history) < 3 else original(self))

    def training():
        with Saves(folder, 30.0) as saves:
            trained(saves, clock, 31, 1, torch.zeros(()))
            trained(saves, clock, 1, 6, torch.ones(()))
            pytest.fail("it went on to its end")

    refusal(training, "no space")
    monkeypatch.undo()


def test_an_error_of_the_last_save_is_not_lost(folder, clock, monkeypatch):
    monkeypatch.setattr(Folder, "write", raising(BenchError("cannot write: no space")))

    def training():
        with Saves(folder, 30.0) as saves:
            trained(saves, clock, 31, 1, torch.zeros(()))

    refusal(training, "no space")
