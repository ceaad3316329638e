"""When the state of a training is written: by a thread, about every half minute, at the last epoch, and at any stop.

An epoch's end is copied at once, which takes milliseconds; digests, serialisation and the disk take a second for a
ResNet-18, and training goes on meanwhile. A process that is killed without notice loses what is not written yet, and
resumes from what is.
"""

import time
from copy import deepcopy
from threading import Thread
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
        self._begun, self._at = folder.finished, time.monotonic()
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> "Saves":
        return self

    def epoch_done(self, row: dict[str, Any], state: dict[str, Any]) -> None:
        """Take over the end of an epoch, and write it if it is time to.

        Raises:
            BenchError: an earlier one could not be written.
        """
        self.folder = self.folder.after(row, deepcopy(state))
        is_last = self.folder.finished == self.folder.epochs
        if is_last or time.monotonic() - self._at >= self.seconds:
            self._join()
            self._raise()
            self._thread = Thread(target=self._write, args=(self.folder.off_device(),), name="saves")
            self._thread.start()
            self._begun, self._at = self.folder.finished, time.monotonic()
        if not self.seconds:
            self._join()
        self._raise()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with to_its_end():
            self._join()
            if self._begun < self.folder.finished:
                self.folder.off_device().write()
            if error is not self._error:
                self._raise()

    def _write(self, folder: RunFolder) -> None:
        try:
            folder.write()
        except BaseException as error:  # raised where the training waits for it
            self._error = error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
