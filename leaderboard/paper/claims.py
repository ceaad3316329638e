"""The claims of the Adv-DPNP paper, measured on committed boards: against adversarial training, image by image."""

from collections.abc import Iterator, Mapping, Sequence

from bench.leaderboard.paper.boards import Board
from bench.leaderboard.render.markdown import bare_table
from bench.leaderboard.tables.table import ColumnFormat
from bench.leaderboard.wording.intervals import difference_text
from bench.leaderboard.wording.ranks import rank_text
from bench.results.comparison import PairedDifference, compare
from bench.results.file import EvaluationResult

DEFENSE, BASELINE = "adv-dpnp", "at"
MEASURES: Mapping[str, Sequence[str]] = {
    "cifar10-linf-full-without-autoattack-v1": ("Clean", "PGD-20", "C&W-30", "PGD l1", "PGD l2"),
    "cifar10-linf-full-v3-first1000": ("AutoAttack", "APGD l1", "APGD l2", "Worst case"),
    "cifar10-corruptions-v1": ("Avg Acc 19",),
    "cifar10-features-v1": ("FDR/M² ↓ clean", "SCR ↑ clean", "MeanSep ↑", "MinSep ↑"),
}
"""Columns by board: clean accuracy, robustness and transfer to other norms, corruptions, and the feature space."""


def claims_table(boards: Sequence[Board]) -> str:
    """A row for each measure: both defenses, their difference with its test, and the defense's rank among all rows."""
    named = {board.name: board for board in boards}
    rows = [row for name, titles in MEASURES.items() for row in _rows(named[name], titles)]
    return bare_table(["Measure", "Images", DEFENSE, BASELINE, "Difference", "Rank"], rows)


def _rows(board: Board, titles: Sequence[str]) -> Iterator[list[str]]:
    results = [_result(board, name) for name in (DEFENSE, BASELINE)]
    differences: Mapping[str, PairedDifference] = {}
    if results[0].features is None:
        (differences,) = compare([DEFENSE, BASELINE], results, titles=titles)
    for title in titles:
        column = board.table.columns[title]
        numbers = {row.name: row.cells[title].value for row in board.table.rows}
        shown = [f"{numbers[name]:.{column.decimals}f}" for name in (DEFENSE, BASELINE)]
        found = differences.get(title)
        difference = difference_text(found.difference, found.interval, found.p_value) if found else ""
        yield [title, f"{len(results[0].label):,}", *shown, difference, _rank(board, title, numbers, column)]


def _result(board: Board, defense: str) -> EvaluationResult:
    return next(result for result in board.results if result.run.get("defense") == defense)


def _rank(board: Board, title: str, numbers: Mapping[str, float], column: ColumnFormat) -> str:
    """The ranks that the samples leave open; of numbers without samples, the place of this number."""
    row = next(row for row in board.table.rows if row.name == DEFENSE)
    if title in row.ranks:
        return f"{rank_text(row.ranks[title])} of {len(numbers)}"
    own = numbers[DEFENSE]
    better = sum(number < own if column.lower_is_better else number > own for number in numbers.values())
    return f"{better + 1} of {len(numbers)}, not tested"
