"""Who may import whom, how long a file may be, which names the harness may not know, and that tests assert."""

import ast
import pkgutil

import pytest

from benchmarks.rooms import (
    ARROWS,
    BOARD_ROOMS,
    GROUND,
    LONGEST,
    ROOMS,
    arrows,
    imports,
    lines_of_code,
    reachable,
    room_of,
)
from tests import ROOT
from tests.conftest import NUMERIC

MAY_IMPORT = {
    "attacks": {"bench.attacks", "bench.interfaces", "bench.errors"},
    "defenses": {"bench.attacks", "bench.interfaces", "bench.errors"},
    "leaderboard": {"bench.results", "bench.errors", "bench.text", "bench.system.files"},
}
OURS = ("attacks", "bench", "defenses", "leaderboard")


def test_the_numeric_part_of_the_suite_names_files_that_exist():
    assert [name for name in NUMERIC if not [*(ROOT / "tests").rglob(f"test_{name}.py")]] == []


def files(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def harness():
    """The files of `bench/` that are not links to the folders beside it."""
    return [path for path in files("bench") if path.relative_to(ROOT).parts[1] not in MAY_IMPORT]


@pytest.mark.parametrize("path", files(*MAY_IMPORT), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_plugins_and_boards_see_only_the_contract(path):
    folder, room, *_ = path.relative_to(ROOT).parts
    allowed = MAY_IMPORT[folder]
    if folder == "leaderboard":  # its face may use all its rooms
        rooms = BOARD_ROOMS if room == "__init__.py" else (room, *BOARD_ROOMS[room])
        allowed = allowed | {f"bench.leaderboard.{one}" for one in rooms}
    ours = {name for name in imports(path) if name.split(".")[0] in OURS}
    assert [name for name in ours if not any(f"{name}.".startswith(f"{one}.") for one in allowed)] == []


def test_rooms_import_each_other_along_the_arrows_and_no_others():
    assert arrows(ROOT) <= {(room, other) for room in ROOMS for other in reachable(room)}


def test_the_arrows_are_twelve_and_make_no_circle():
    assert len(ARROWS) == 12
    assert all(room not in reachable(other) for room, other in ARROWS)
    assert {room for arrow in ARROWS for room in arrow} | GROUND | {"cli"} == ROOMS.keys()
    order = list(BOARD_ROOMS)
    assert all(order.index(other) < order.index(room) for room in order for other in BOARD_ROOMS[room])


def test_every_file_of_the_harness_is_in_a_room():
    assert {room_of(path.relative_to(ROOT / "bench")) for path in harness()} <= ROOMS.keys()


def test_no_file_is_too_long():
    assert [path.name for path in (*harness(), *files("leaderboard")) if lines_of_code(path) > LONGEST] == []


@pytest.mark.parametrize("path", harness(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_harness_imports_and_names_no_plugin(path):
    imported = {".".join(name.split(".")[:2]) for name in imports(path)}
    assert not imported & {"bench.attacks", "bench.defenses", *OURS} - {"bench"}
    assert "bench.leaderboard" not in imported or path.parent.name == "cli"
    plugins = {
        item.name.replace("_", "-")
        for folder in ("attacks", "defenses")
        for item in pkgutil.iter_modules([str(ROOT / folder)])
        if not item.name.startswith("_")
    }
    tree = ast.parse(path.read_text())
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    # The published AutoAttack package shares its name with the attack that wraps it.
    assert not strings & (plugins - {"autoattack"})


def test_no_grab_bag_modules():
    refused = {"utils", "util", "helpers", "helper", "misc", "core", "common", "base"}
    assert not [path for path in files(*OURS, "tests") if path.stem.strip("_") in refused]


def test_every_test_file_asserts():
    for path in files("tests"):
        if path.name.startswith("test_"):
            text = path.read_text()
            assert "assert" in text or "raises" in text, path
