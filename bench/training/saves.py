"""When the state of a training is written: by a thread, about every half minute, at the last epoch, and at any stop.

An epoch's end is copied at once, which takes milliseconds; digests, serialisation and the disk take a second for a
ResNet-18, and training goes on meanwhile. A process that is killed without notice loses what is not written yet, and
resumes from what is.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import deepcopy
from types import TracebackType
from typing import Any

from bench.system.signals import to_its_end
from bench.training.run_folder import RunFolder


class Saves:
    """Writes a folder's newest epoch; at exit, also of an interrupted or failing training, that it has not written.

    With 0 `seconds` every epoch is on disk before the next one begins.
    """

    def __init__(self, folder: RunFolder, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        self.on_disk = self._begun = folder.finished
        """Epochs whose state is on disk, as far as this thread knows."""
        self._at = time.monotonic()
        self._thread = ThreadPoolExecutor(1, "saves")
        self._write: Future[None] | None = None

    def __enter__(self) -> "Saves":
        return self

    def epoch_done(self, row: dict[str, Any], state: dict[str, Any]) -> None:
        """Take over the end of an epoch, and write it if it is time to; the last one is on disk before this returns.

        Raises:
            BenchError: an earlier one could not be written.
        """
        self.folder = self.folder.after(row, deepcopy(state))
        is_last = self.folder.finished == self.folder.epochs
        if is_last or time.monotonic() - self._at >= self.seconds:
            self._wait()
            self._write = self._thread.submit(self.folder.off_device().write)
            self._begun, self._at = self.folder.finished, time.monotonic()
        if is_last or not self.seconds or (self._write is not None and self._write.done()):
            self._wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with to_its_end():
            self._thread.shutdown(wait=False)
            self._wait()
            if self._begun < self.folder.finished:
                self.folder.off_device().write()

    def _wait(self) -> None:
        """Wait for the write in progress, also after a Ctrl-C, but not after a second one; raise what it raised."""
        if self._write is not None:
            try:
                wait([self._write])
            except KeyboardInterrupt:
                wait([self._write])
                raise
            write, self._write = self._write, None
            write.result()
            self.on_disk = self._begun
