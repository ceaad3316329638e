"""What cheap attacks would have said in the place of AutoAttack, measured on committed boards."""

from collections.abc import Mapping, Sequence

import numpy as np

from bench.leaderboard.paper.boards import Board
from bench.leaderboard.render.markdown import bare_table
from bench.leaderboard.tables.row_names import row_names
from bench.results.metrics import correct, worst_case_accuracy
from bench.results.surrogates import cost_share, require_autoattack, surrogate_error

SURROGATES: Mapping[str, Sequence[str]] = {
    "FGSM": ("FGSM",),
    "PGD-20": ("PGD-20",),
    "C&W-30": ("C&W-30",),
    "PGD-20 and C&W-30": ("PGD-20", "C&W-30"),
}
BOARDS = ("cifar10-linf-full-v3-first1000", "cifar10-linf-full-v2-first1000-seeds", "digits-linf-full-v3")
FAR_OFF = 20
"""Points."""


def surrogate_table(boards: Sequence[Board]) -> str:
    """A row for each board and surrogate: its cost, how far off it is, where it is furthest off, and the ranks."""
    named = {board.name: board for board in boards}
    rows = [_row(named[name], title, labels) for name in BOARDS for title, labels in SURROGATES.items()]
    headers = (
        "Board",
        "Surrogate",
        "Cost",
        "Mean error",
        "Largest error",
        f"Rows {FAR_OFF} points off",
        "Images",
        "Pairs",
    )
    return bare_table(headers, rows)


def _row(board: Board, title: str, labels: Sequence[str]) -> list[str]:
    results, names = board.results, row_names(board.results)
    truth = np.array([100 * float(correct(one, require_autoattack(one).label).mean()) for one in results])
    said = np.array([100 * worst_case_accuracy(one, labels) for one in results])
    error = said - truth
    worst = int(np.abs(error).argmax())
    images = np.mean([surrogate_error(one, labels).mean() for one in results])
    cost = np.mean([cost_share(one, labels) for one in results])
    above = np.sign(np.subtract.outer(said, said)) * np.sign(np.subtract.outer(truth, truth))
    turned = int((above[np.triu_indices(len(results), 1)] < 0).sum())
    return [
        board.name,
        title,
        f"{100 * cost:.1f} %" if cost >= 0.01 else f"{100 * cost:.2g} %",
        f"{np.abs(error).mean():.1f}",
        f"{error[worst]:+.1f} ({names[worst]}: {said[worst]:.1f}, AutoAttack {truth[worst]:.1f})",
        f"{int((np.abs(error) >= FAR_OFF).sum())} of {len(results)}",
        f"{100 * images:.1f} %",
        f"{turned} of {len(results) * (len(results) - 1) // 2}",
    ]
