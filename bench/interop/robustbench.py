"""`import robustbench`, silent, and with what its release 1.1.1 gets wrong for CIFAR-C put right in memory.

`benchmark(threat_model="corruptions")` stops on CIFAR-10 and CIFAR-100: the loaders do not take the `prepr` they are
given, and the mean corruption error is divided by that of AlexNet, of which there is none on CIFAR
(https://github.com/RobustBench/robustbench/issues/194). After `install()`, an import of `robustbench.eval` brings it
repaired; a release that has repaired itself is left as it is.
"""

import contextlib
import functools
import importlib
import importlib.abc
import importlib.machinery
import inspect
import io
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from bench.errors import BenchError
from bench.interop import autoattack as autoattack_package

PACKAGE, MODULE = "robustbench", "robustbench.eval"


def install() -> None:
    """Have `robustbench.eval` repaired when it is imported, or now if it was. Imports nothing; idempotent."""
    autoattack_package.install()
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
    if MODULE in sys.modules:
        repair(sys.modules[MODULE])


def load() -> Any:
    """The package robustbench; its import takes seconds. Nothing of what it and its dependencies say is shown.

    Raises:
        BenchError: it cannot be imported.
    """
    install()
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    try:
        with warnings.catch_warnings(), quiet[0], quiet[1]:
            warnings.simplefilter("ignore")
            return importlib.import_module(PACKAGE)
    except ImportError as error:
        raise BenchError(
            f"robustbench cannot be imported ({error}). Run: pip install 'robustbench>=1.1.1' 'setuptools<82'."
        ) from error


class Finder(importlib.abc.MetaPathFinder):
    """Finds `robustbench.eval` where it is, and repairs it once its code has run."""

    # The path of a namespace package is no Sequence, whatever the base class declares.
    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != MODULE:
            return None
        specification = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if specification is not None and specification.loader is not None:
            execute = specification.loader.exec_module

            def execute_and_repair(module: ModuleType) -> None:
                execute(module)
                repair(module)

            specification.loader.exec_module = execute_and_repair  # type: ignore[method-assign]
        return specification


def repair(module: Any) -> None:
    """Make `corruptions` work on CIFAR. `module` is `robustbench.eval`; idempotent."""
    for loaders in module.CORRUPTION_DATASET_LOADERS.values():
        for threat_model, load_images in loaders.items():
            if "prepr" not in inspect.signature(load_images, follow_wrapped=False).parameters:
                loaders[threat_model] = without_preprocessing(load_images)
    if not hasattr(module.corruptions_evaluation, "__wrapped__"):
        module.corruptions_evaluation = without_alexnet(module, module.corruptions_evaluation)


def without_preprocessing(load_images: Callable[..., Any]) -> Callable[..., Any]:
    """A loader of CIFAR-C that takes, and ignores, the preprocessing meant for ImageNet."""

    @functools.wraps(load_images)
    def load_as_it_is(*arguments: Any, prepr: Any = None, **options: Any) -> Any:
        return load_images(*arguments, **options)

    return load_as_it_is


def without_alexnet(module: Any, evaluation: Callable[..., Any]) -> Callable[..., Any]:
    """`corruptions_evaluation` that, where there is no row of AlexNet, returns the plain mean error as mCE.

    So the authors of CIFAR-10-C report it: https://github.com/hendrycks/robustness/issues/28.
    """

    @functools.wraps(evaluation)
    def evaluate(*arguments: Any, **options: Any) -> Any:
        accuracies: list[float] = []
        published = module.clean_accuracy

        def recorded(*arguments: Any, **options: Any) -> float:
            accuracies.append(published(*arguments, **options))
            return accuracies[-1]

        module.clean_accuracy = recorded
        try:
            return evaluation(*arguments, **options)
        except KeyError as error:
            if error.args != ("AlexNet",):
                raise
            accuracy = sum(accuracies) / len(accuracies)
            return accuracy, 1 - accuracy
        finally:
            module.clean_accuracy = published

    return evaluate
