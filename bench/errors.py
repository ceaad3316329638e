"""The one exception a person sees: its text names the value, what is allowed, and the way out."""

import errno
import os
import sysconfig
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class BenchError(Exception):
    """Bad input or an unusable file. The command line prints the text on one line and exits with 2.

    A docstring that says that something is refused means that it is raised.
    """


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> BenchError:
    """An error for a name that does not exist: the nearest right one first, then all of them."""
    choices = sorted(allowed)
    near = get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return BenchError(f"unknown {kind} {name!r}.{hint} Choose from: {', '.join(choices)}.")


def nearest_names(name: str, names: Iterable[str]) -> str:
    """A sentence with the names that are most like one that does not exist, for where there are too many to tell."""
    near = get_close_matches(name, list(names), n=3, cutoff=0.4)
    return f" Nearest: {', '.join(near)}." if near else ""


_ADVICE = {
    errno.ENAMETOOLONG: "Give a shorter name.",
    errno.ENOSPC: "Free some space and give the same command again.",
    errno.EDQUOT: "Free some space and give the same command again.",
    errno.EMFILE: "Allow more open files (ulimit -n).",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Give a path that you may use, or ask for the right to."),
}
_ALLOCATORS = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def ran_out(error: BaseException) -> bool:
    """True if an error says that there is no memory left; not every allocator has an exception of its own."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, not imported here
        return True
    return isinstance(error, RuntimeError) and any(name in str(error) for name in _ALLOCATORS)


def system_refusal(error: Exception) -> BenchError | None:
    """The line for what the system refused: memory, a path, a character; None for any other error."""
    if ran_out(error):
        return BenchError(f"memory ran out ({cause(error)}). Free some, or take less at once: --limit, --batch-size.")
    if isinstance(error, UnicodeError):
        return BenchError(f"a text is not of its encoding ({cause(error)}). Use UTF-8 (PYTHONUTF8=1).")
    if not isinstance(error, OSError):
        return None
    where = "" if error.filename is None else f" {str(error.filename)!r}"
    advice = _ADVICE.get(error.errno or 0, "Look at it and give the same command again.")
    reason = f"{error.strerror}{_own_line(error)}" if error.strerror else cause(error)
    return BenchError(f"the system refuses{where}: {reason}. {advice}")


def cause(error: BaseException) -> str:
    """`ValueError: its text (mine.py:17)`, on one line: with the last line of a person's own code that led to it."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}{text and ': '}{text}{_own_line(error)}"


def _own_line(error: BaseException) -> str:
    folders = [str(Path(__file__).parent), *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib"))]
    others = ("<", *(folder + os.sep for folder in folders))
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(others)]
    return f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
