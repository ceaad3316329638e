"""Folders of result files, such as the committed boards, each with the table that they make."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.leaderboard.tables.build import build_table
from bench.leaderboard.tables.table import LeaderboardTable, Row
from bench.results.file import EvaluationResult, read_result

COMMITTED = Path(__file__).parent.parent / "boards"
"""The boards that come with the source of the program; a wheel has none."""


@dataclass(frozen=True)
class Board:
    """A folder of result files and the table they make."""

    name: str
    results: tuple[EvaluationResult, ...]
    table: LeaderboardTable

    def rows(self, defense: str) -> list[Row]:
        """The rows of a defense."""
        return [row for row in self.table.rows if row.name == defense or row.name.startswith(f"{defense} (")]

    def setting(self, defense: str) -> dict[str, str]:
        """Dataset, network, epochs, test images and seeds of a defense's results, as text."""
        runs = [result.run for result in self.results if result.run.get("defense") == defense]
        samples = len(self.results[0].label)
        everything = samples == runs[0].get("dataset_size")
        part = "the first " if runs[0].get("sampling", "first") == "first" else ""
        return {
            "dataset": _listed(run.get("dataset") for run in runs),
            "network": _listed(run.get("backbone") for run in runs),
            "epochs": _listed(run.get("protocol", {}).get("epochs") for run in runs),
            "test images": f"all {samples}" if everything else f"{part}{samples}",
            "seeds": _listed(run.get("seed") for run in runs),
        }


def read_boards(folder: Path) -> list[Board]:
    """Every folder of result files in `folder`, seeds merged where there are several.

    Raises:
        BenchError: a file is no result, or results of one folder do not compare.
    """
    boards = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        results = tuple(read_result(path) for path in sorted(place.glob("*.h5")))
        if not results:
            raise BenchError(f"the board {place} holds no result file. Add some, or delete the folder.")
        seeds = {result.run.get("seed") for result in results}
        boards.append(Board(place.name, results, build_table(results, merge_seeds=len(seeds) > 1)))
    return boards


def written_rows(folder: Path, name: str) -> Iterator[dict[str, str]]:
    """The rows called `name`, also with a distinction in brackets, of every board that is written there as Markdown.

    Each as "Board", "Rank" (with the number of rows and the column that ranks), and its cells by title.
    """
    for path in sorted(folder.glob("*.md")):
        lines = path.read_text(encoding="utf-8").splitlines()
        order = re.search(r"(?:ranked|ordered) by (.+)$", lines[0])
        if order is None or not (folder / path.stem).is_dir():
            continue
        head, _, *rows = [
            [cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"
        ]
        for row in (dict(zip(head, cells, strict=True)) for cells in rows):
            if row["Model"] == name or row["Model"].startswith(f"{name} "):
                yield {"Board": path.stem, **row, "Rank": f"{row.get('Rank', '-')} of {len(rows)} by {order[1]}"}


def _listed(values: Iterable[object]) -> str:
    return ", ".join(sorted(set(map(str, values))))
