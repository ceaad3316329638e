"""`import autoattack` where only its PyPI build, pyautoattack, is installed.

The code of RobustBench and of most papers imports https://github.com/fra31/auto-attack under its own name and
signature. PyPI carries it as `pyautoattack`, under another name and with renamed arguments. After `install()`, an
`import autoattack` that finds no package of that name gets pyautoattack's modules, and a class with the signature
of the original. A stopped run goes on from its state file, which neither of the published packages can do.
"""

import ast
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE, BUILD = "autoattack", "pyautoattack"


def install() -> None:
    """Serve `import autoattack` from pyautoattack where no real one is found. Imports nothing yet; idempotent."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())


class Finder(importlib.abc.MetaPathFinder):
    """Answers for `autoattack` alone. It stands last on the path, so that an installed `autoattack` wins."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != PACKAGE or importlib.util.find_spec(BUILD) is None:
            return None
        return importlib.machinery.ModuleSpec(PACKAGE, Loader(), is_package=True)


class Loader(importlib.abc.Loader):
    """Fills the package `autoattack` with the modules of pyautoattack."""

    def exec_module(self, module: ModuleType) -> None:
        build = importlib.import_module(BUILD)
        # Each submodule is entered under its second name here: found by path, it would be loaded twice, and the
        # two copies of a class such as EvaluationState would not be the same type.
        for name, loaded in list(sys.modules.items()):
            if name.startswith(f"{BUILD}."):
                short = name.removeprefix(f"{BUILD}.")
                sys.modules[f"{PACKAGE}.{short}"] = loaded
                setattr(module, short, loaded)
        state = readable_state(sys.modules[f"{BUILD}.state"].EvaluationState)
        for name, content in {
            "autoattack": {"AutoAttack": original_signature(build.AutoAttack, running_state(state))},
            "state": {"EvaluationState": state},
        }.items():
            own = sys.modules[f"{PACKAGE}.{name}"] = ModuleType(f"{PACKAGE}.{name}")
            own.__dict__.update(content)
            setattr(module, name, own)
        module.__dict__["AutoAttack"] = sys.modules[f"{PACKAGE}.autoattack"].__dict__["AutoAttack"]


def original_signature(build: Any, state_class: type) -> type:
    """A subclass of pyautoattack's class that is called like the original and keeps its state in a `state_class`."""
    module: Any = sys.modules[build.__module__]

    class AutoAttack(build):
        """AutoAttack as https://github.com/fra31/auto-attack declares it, run by pyautoattack."""

        def __init__(
            self,
            model: Any,
            norm: str = "Linf",
            eps: float = 0.3,
            seed: int | None = None,
            verbose: bool = True,
            attacks_to_run: Sequence[str] = (),
            version: str = "standard",
            is_tf_model: bool = False,
            device: Any = "cuda",
            log_path: str | Path | None = None,
        ) -> None:
            if is_tf_model:
                raise NotImplementedError("pyautoattack runs PyTorch models only; install the original for TensorFlow.")
            attacks = list(attacks_to_run) or ([] if version == "custom" else None)
            self.attacks_to_run: list[str]
            super().__init__(model, attacks=attacks, device=device, eps=eps, norm=norm, seed=seed, version=version)
            self.verbose, self.log_path = verbose, log_path

        def run_standard_evaluation(
            self,
            x_orig: Any,
            y_orig: Any,
            bs: int = 250,
            return_labels: bool = False,
            state_path: str | Path | None = None,
        ) -> Any:
            state = None if state_path is None else Path(state_path)
            with narrated(self.logger, self.verbose, self.log_path), keeping(module, state_class):
                adversarial, labels = super().run_standard_evaluation(x_orig, y_orig, batch_size=bs, state_path=state)
            return (adversarial, labels) if return_labels else adversarial

        def run_standard_evaluation_individual(
            self, x_orig: Any, y_orig: Any, bs: int = 250, return_labels: bool = False
        ) -> dict[str, Any]:
            found = {}
            every: list[str] = list(self.attacks_to_run)
            for name in every:
                self.attacks_to_run = [name]
                found[name] = self.run_standard_evaluation(x_orig, y_orig, bs, return_labels)
            self.attacks_to_run = every
            return found

    return AutoAttack


def readable_state(build: Any) -> type:
    """A subclass of pyautoattack's EvaluationState that reads the files it writes.

    Those hold the set of attacks as its repr, where the published class expects a set, and no flags at first.
    """

    class EvaluationState(build):
        """The attacks that were run, and which images still stand."""

        # The hints of the constructor it inherits are pyautoattack's affair.
        __no_type_check__ = True

        @classmethod
        def from_disk(cls, path: str | Path) -> Any:
            import torch

            from bench.system.budgets import read_json

            try:
                stored = read_json(Path(path))
                wanted, done, flags = (stored[f"_{name}"] for name in ("attacks_to_run", "run_attacks", "robust_flags"))
                state = cls(_as_set(wanted), Path(path), _as_set(done))
                state._robust_flags = None if flags is None else torch.tensor(flags, dtype=torch.bool)
                state._clean_accuracy = float(stored["_clean_accuracy"])
            except (KeyError, TypeError, ValueError, SyntaxError) as error:
                raise ValueError(f"{path} is not a whole state file of AutoAttack. Delete it to start anew.") from error
            return state

        @property
        def robust_flags(self) -> Any:
            """One per image: 1.0 still stands, 0.0 is broken or was wrong. Doubles: RobustBench takes their mean."""
            return None if self._robust_flags is None else self._robust_flags.double()

        @robust_flags.setter
        def robust_flags(self, flags: Any) -> None:
            build.robust_flags.fset(self, flags)

    return EvaluationState


def _as_set(stored: str | list[str]) -> set[str]:
    return set(ast.literal_eval(stored) if isinstance(stored, str) else stored)


def running_state(readable: Any) -> type:
    """The state as pyautoattack's loop must see it to go on with a stopped run.

    The loop creates the labels it returns in its pass over the clean images, and skips that pass when the state has
    flags: then it stops at the first batch. So a state that was read shows none until the pass is made, and the flags
    that the pass finds are reduced, in place, to the images that still stood.
    """

    class RunningState(readable):
        """A state in use."""

        shown = False

        @property
        def robust_flags(self) -> Any:
            return readable.robust_flags.fget(self) if self.shown else None

        @robust_flags.setter
        def robust_flags(self, flags: Any) -> None:
            if self._robust_flags is not None:
                if len(flags) != len(self._robust_flags):
                    raise ValueError(f"{self.path} is of {len(self._robust_flags)} images, this run of {len(flags)}.")
                flags &= self._robust_flags.to(flags.device)
            self.shown = True
            readable.robust_flags.fset(self, flags)

        @property
        def clean_accuracy(self) -> float:
            return float(self._clean_accuracy)

        @clean_accuracy.setter
        def clean_accuracy(self, accuracy: float) -> None:
            # Of a run that goes on, the loop would put the share that still stands here.
            if math.isnan(self._clean_accuracy):
                readable.clean_accuracy.fset(self, accuracy)

    return RunningState


@contextmanager
def keeping(module: Any, state_class: type) -> Iterator[None]:
    """Pyautoattack's loop with another class for its state."""
    published = module.EvaluationState
    module.EvaluationState = state_class
    try:
        yield
    finally:
        module.EvaluationState = published


@contextmanager
def narrated(logger: logging.Logger, verbose: bool, log_path: str | Path | None) -> Iterator[None]:
    """Print, and write to `log_path`, the original's lines, from those that pyautoattack logs at DEBUG level."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)] if verbose else []
    if log_path is not None:
        handlers.append(logging.FileHandler(log_path))
    level = logger.level
    for handler in handlers:
        logger.addHandler(handler)
    if handlers:
        logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
