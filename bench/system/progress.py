"""Progress that a person sees: a bar with loss terms, speed and time left, or plain lines in a log."""

import importlib.util
import sys
import time
import warnings
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from bench.system.heartbeat import Heartbeat, sign_of_training
from bench.system.streams import outliving_its_reader
from bench.text import one_line, printable

SECONDS_BETWEEN_CHECKS = 1.0
WORTH_A_WARNING = 6 * 3600


def _bar(quiet: bool, **options: Any) -> Any:
    """A bar of tqdm: a widget in a notebook, or a line if it has no widgets; a line on a terminal; elsewhere none."""
    if quiet or not _in_a_notebook():
        from tqdm import tqdm

        return tqdm(disable=True if quiet else None, dynamic_ncols=True, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a notebook without widgets
        from tqdm.auto import tqdm as widget
    return widget(disable=False, **options)  # the output of a notebook is no terminal


def _in_a_notebook() -> bool:
    """True within a kernel of Jupyter; IPython on a terminal is none."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", {})


def _print(text: str) -> None:
    with outliving_its_reader():
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201


class TrainingProgress:
    """A progress bar on a terminal, one line per epoch elsewhere, TensorBoard events where it is installed."""

    def __init__(
        self,
        quiet: bool,
        folder: Path | None = None,
        epochs: int = 0,
        batches: int = 0,
        device: torch.device | None = None,
        finished: int = 0,
    ) -> None:
        self.quiet, self.folder, self.epochs, self.batches, self.device = quiet, folder, epochs, batches, device
        self.finished = finished
        self.bar: Any = None
        self.events: Any = None
        self.images = self.steps = 0
        self.started = self.checked = time.monotonic()
        self.warned = False
        self.heart = Heartbeat(None if folder is None else sign_of_training(folder))

    def __enter__(self) -> "TrainingProgress":
        self.bar = _bar(self.quiet, total=None if not self.epochs else self.epochs * self.batches, unit="step")
        if self.folder is not None and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.finished + 1)
        self.heart.tell(self.finished, self.epochs, None, None)
        self.heart.__enter__()
        return self

    def __exit__(self, *how: Any) -> None:
        self.heart.__exit__(*how)
        self.bar.close()
        if self.events is not None:
            self.events.close()

    def say(self, text: str) -> None:
        """One line, above the bar."""
        if not self.quiet:
            _print(text)

    def step(self, images: int) -> bool:
        """Count a batch; True about once a second: then the device may be waited for."""
        self.images += images
        self.steps += 1
        self.bar.update()
        now = time.monotonic()
        if now - self.checked < SECONDS_BETWEEN_CHECKS:
            return False
        self.checked = now
        left = self.epochs * self.batches - self.finished * self.batches - self.steps
        seconds = left * (now - self.started) / self.steps
        self.heart.tell(self.finished + self.steps // max(self.batches, 1), self.epochs, self.rate, seconds)
        return True

    def show(self, terms: Mapping[str, Tensor]) -> None:
        """Loss terms and speed beside the bar, and a warning where the run will take hours; waits for the device."""
        values = [f"{name} {float(value.detach()):.3f}" for name, value in terms.items()]
        self.bar.set_postfix_str(printable("  ".join([*values, f"{self.rate:.0f} images/s"])))
        self._warn_of_a_long_run()

    @property
    def rate(self) -> float:
        """Images per second since the start."""
        return self.images / max(time.monotonic() - self.started, 1e-9)

    def _warn_of_a_long_run(self) -> None:
        if self.warned or self.steps < 3 or self.device is None or self.device.type != "cpu":
            return
        self.warned = True
        left = (time.monotonic() - self.started) / self.steps * (self.epochs * self.batches)
        if left > WORTH_A_WARNING:
            self.say(
                f"warning: {self.epochs} epochs on this CPU will take about {left / 3600:.0f} hours "
                f"({self.rate:.0f} images/s). It goes on, and --resume continues it after a stop; "
                "a GPU, --epochs, --limit-train or --backbone cnn-small-bn make it shorter."
            )

    def epoch_done(
        self, row: Mapping[str, Any], short: Mapping[str, str] = MappingProxyType({}), saved: int | None = None
    ) -> None:
        """One epoch finished, with its history row, and the last one `saved`, whose state is on disk; None: none is.

        A `short` text is shown for all values whose names begin so.
        """
        long = {name: f"{value:.4g}" for name, value in row.items() if not name.startswith(tuple(short))}
        numbers = "  ".join(f"{name} {text}" for name, text in {**long, **short}.items() if name != "epoch")
        on_disk = "" if not saved else "  saved" if saved >= row["epoch"] else f"  saved up to epoch {saved}"
        line = f"epoch {row['epoch']:.0f}/{self.epochs}  {numbers}  {self.rate:.0f} images/s{on_disk}"
        if not self.quiet and self.bar.disable:
            self.say(line)
        elif not self.quiet:
            with outliving_its_reader():
                self.bar.write(printable(line), file=sys.stderr)
        if self.events is not None:
            for name, value in row.items():
                if not isinstance(value, str):
                    self.events.add_scalar(name, value, int(row["epoch"]))


class EvaluationProgress:
    """One bar for a whole evaluation, or for a piece of work of its own; where there is no terminal, a line a stage."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.bar: Any = None
        self.name = ""
        self.blocks: tuple[int, int] | None = None
        """Those that are done of a whole evaluation, and all of them; None: each piece of work is for itself."""
        self.left: float | None = None

    def overall(self, done: int, total: int, images: float | None, left: float | None) -> None:
        """Of all blocks so many are done, and the seconds that are left at most, as far as they are known."""
        self.blocks, self.left = (done, total), left

    def __call__(self, name: str, done: int, total: int, standing: int | None = None) -> None:
        """Called before each block of a piece of work, and once at its end."""
        told = f"{standing} of {done} stand" if done and standing is not None else f"{done} of {total} images"
        if self.blocks is None:
            self._of_its_own(name, done, total, told)
        else:
            self._of_all(f"{one_line(name)}: {told}")
        if done >= total and not self.quiet and self.bar.disable:
            left = "" if self.blocks is None else f"  ({self._so_far()})"
            self.say(f"{one_line(name)}: {told}{left}")
        if done >= total and self.blocks is None:
            self.close()

    def _of_its_own(self, name: str, done: int, total: int, told: str) -> None:
        if name != self.name:
            self.close()
            self.name = name
            self.bar = _bar(self.quiet, desc=one_line(name), total=total, unit="image")
        self.bar.set_postfix_str(told, refresh=False)
        self.bar.update(done - self.bar.n)

    def _of_all(self, stage: str) -> None:
        assert self.blocks is not None
        done, total = self.blocks
        if self.bar is None:
            # The last step is the trust report's, which no block is of.
            shape = "{desc} |{bar}|{percentage:3.0f} %{postfix}"
            drawn: dict[str, Any] = {"desc": stage, "postfix": self._so_far(), "initial": done, "total": total + 1}
            self.bar = _bar(self.quiet, bar_format=shape, leave=False, **drawn)
        self.bar.set_description_str(stage, refresh=False)
        self.bar.set_postfix_str(self._so_far(), refresh=False)
        self.bar.n, self.bar.total = done, total + 1  # fewer blocks once it is known which images are right
        self.bar.refresh()

    def _so_far(self) -> str:
        """Blocks that are done, and the time that is left for the others."""
        assert self.blocks is not None
        done, total = self.blocks
        known = self.left is not None and done < total
        left = f", at most {timedelta(seconds=round(self.left or 0))} left" if known else ""
        return f"{done} of {total} blocks{left}"

    def say(self, text: str) -> None:
        """One line, outside of any bar."""
        if not self.quiet:
            _print(text)

    def close(self) -> None:
        """End the current bar."""
        if self.bar is not None:
            self.bar.close()
        self.bar, self.name = None, ""
