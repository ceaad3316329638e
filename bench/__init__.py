"""The harness: from dataset to leaderboard. Importing it changes nothing, and costs nothing before something is used.

In Python: `bench.train`, `bench.evaluate`, `bench.load_dataset`, `bench.load_checkpoint`, `bench.read_result`, and
`bench.leaderboard`, which is called with results. The command line is `bench --help`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.face import evaluate, load_checkpoint, load_dataset, read_result, train

__version__ = "0.1.0"
__all__ = ["evaluate", "leaderboard", "load_checkpoint", "load_dataset", "read_result", "train"]


def __getattr__(name: str) -> Any:
    """A name of `__all__`, imported when it is first asked for."""
    from importlib import import_module

    if name == "leaderboard":
        return import_module("bench.leaderboard")
    if name in __all__:
        return getattr(import_module("bench.face"), name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
