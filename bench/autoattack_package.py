"""`import autoattack` where only its PyPI build, pyautoattack, is installed.

The code of RobustBench and of most papers imports https://github.com/fra31/auto-attack under its own name and
signature. PyPI carries it as `pyautoattack`, under another name and with renamed arguments. After `install()`, an
`import autoattack` that finds no package of that name gets pyautoattack's modules, and a class with the signature
of the original.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
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
        original = ModuleType(f"{PACKAGE}.autoattack")
        original.__dict__.update(AutoAttack=original_signature(build.AutoAttack))
        sys.modules[f"{PACKAGE}.autoattack"] = original
        module.__dict__.update(autoattack=original, AutoAttack=original.__dict__["AutoAttack"])


def original_signature(build: Any) -> type:
    """A subclass of pyautoattack's class that is called like the original."""

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
            with narrated(self.logger, self.verbose, self.log_path):
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


@contextmanager
def narrated(logger: logging.Logger, verbose: bool, log_path: str | Path | None) -> Iterator[None]:
    """What the original prints and writes to `log_path`, from what pyautoattack logs at DEBUG level."""
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
