"""The rooms of `bench/` and `leaderboard/`: which imports which, and how long their files are. Prints a table.

    python -m benchmarks.rooms [FOLDER]

`tests/test_architecture.py` holds this plan: the imports are those of `ARROWS`, and nothing longer.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOMS = {
    "entry": "errors, exact radii, texts, how processes start",
    "interfaces": "the contract: tensors, threat models, models, augmentations, attacks, defenses",
    "system": "the machine: files, locks, signals, devices, randomness, progress",
    "catalogue": "what is asked for by name: plug-ins, recipes, suites",
    "data": "datasets, augmentations, batches, corruptions",
    "results": "result files and every number derived from them; no torch",
    "models": "backbones, checkpoints, folding",
    "engine": "a model under a suite: every sample's outcome",
    "training": "from a request to a checkpoint",
    "interop": "models from and to elsewhere",
    "trust": "whether the number can be believed",
    "evaluation": "from a model and a suite to a result file",
    "submissions": "what others send a board: bundles, their check, attacks on rows",
    "experiments": "many runs: sweeps, jobs, the paper's tables and figures",
    "cli": "one file a command",
}
"""In the order in which data flows."""
GROUND = frozenset({"entry", "interfaces", "system", "catalogue"})
"""Open to all above them; of each other they use those before them."""
ARROWS = (
    ("engine", "data"),
    ("engine", "results"),
    ("training", "engine"),
    ("training", "models"),
    ("interop", "models"),
    ("interop", "results"),
    ("trust", "engine"),
    ("trust", "interop"),
    ("evaluation", "trust"),
    ("submissions", "evaluation"),
    ("experiments", "evaluation"),
    ("experiments", "training"),
)
"""Who imports whom; a room may also use what its arrows reach. `cli` may import all."""
BOARD_ROOMS = {
    "wording": (),
    "tables": ("wording",),
    "render": ("wording", "tables"),
    "figures": ("wording", "tables"),
    "paper": ("wording", "tables", "render"),
}
"""Rooms of `leaderboard/`, each with those that it may import."""
LONGEST = 300
"""Lines of code of a file, at most."""
BESIDE = ("attacks", "defenses", "leaderboard")
"""Folders of `bench/` that are links to those beside it."""
FORMER = ("metrics.py", "comparison.py", "checkpoints.py")
"""Former names of modules, for published model cards."""


def imports(path: Path) -> Iterator[str]:
    """The names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module == "bench":
                yield from (f"bench.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def room_of(place: Path) -> str:
    """The room of a file, or of a module's place, relative to `bench/`."""
    return place.parts[0] if len(place.parts) > 1 or place.suffix != ".py" else "entry"


def files(root: Path) -> list[Path]:
    """The files of the rooms, relative to `bench/`."""
    found = (path.relative_to(root / "bench") for path in sorted((root / "bench").rglob("*.py")))
    return [path for path in found if path.parts[0] not in (*BESIDE, *FORMER)]


def arrows(root: Path) -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports the second."""
    found = set()
    for path in files(root):
        if str(path) in ("__init__.py", "__main__.py", "face.py", "worker.py"):
            continue  # the entry points, and the public face
        for name in imports(root / "bench" / path):
            first, *rest = name.split(".")
            if first == "bench" and rest and rest[0] not in BESIDE:
                other = room_of(Path(rest[0]) if rest[0] in ROOMS else Path(f"{rest[0]}.py"))
                found |= {(room_of(path), other)} - {(room_of(path),) * 2}
    return found


def reachable(room: str) -> set[str]:
    """The rooms that one may import."""
    if room == "cli":
        return set(ROOMS)
    order = list(ROOMS)
    if room in GROUND:
        return set(order[: order.index(room)])
    direct = {other for one, other in ARROWS if one == room}
    return GROUND | direct.union(*(reachable(other) for other in direct))


def lines_of_code(path: Path) -> int:
    """Lines of a file that are not blank, comment or docstring."""
    text = path.read_text(encoding="utf-8")
    described: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            described.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(number not in described and bool(line.strip()) and line.strip()[0] != "#" for number, line in lines)


def main() -> None:
    """Print a table of the rooms below a folder."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    every = arrows(root)
    for room, about in ROOMS.items():
        uses = sorted({other for one, other in every if one == room} - GROUND)
        _print_length(room, [root / "bench" / path for path in files(root) if room_of(path) == room])
        print(f"{'':12} {about}{'; imports ' + ', '.join(uses) if uses and room != 'cli' else ''}")  # noqa: T201
    print(f"{len(ROOMS)} rooms, {len(ARROWS)} arrows and what they reach; in leaderboard/ {len(BOARD_ROOMS)}")  # noqa: T201
    for room, before in BOARD_ROOMS.items():
        _print_length(room, sorted((root / "leaderboard" / room).rglob("*.py")))
        print(f"{'':12} may import {', '.join(before) or 'no other'}")  # noqa: T201


def _print_length(room: str, paths: list[Path]) -> None:
    lengths = {path.name: lines_of_code(path) for path in paths}
    longest = max(lengths, key=lengths.__getitem__)
    print(f"{room:12} {len(paths):3} files {sum(lengths.values()):6} lines, longest {longest} ({lengths[longest]})")  # noqa: T201


if __name__ == "__main__":
    main()
