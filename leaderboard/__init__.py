"""Result files in, tables, pages and figures out. Never sees a model. Called with results, it makes their table."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from bench.results import EvaluationResult
from bench.results.board_rows import read_row


class _Callable(ModuleType):
    """This package, which is also the function of its name."""

    def __call__(self, results: Sequence[EvaluationResult | str | Path], rank_by: str | None = None) -> str:
        """The markdown table of results, or of result files, that compare with each other.

        Example:
            >>> run = bench.train("at", "digits", epochs=1, limit_train=64, quiet=True)
            >>> result = bench.evaluate(run, suite="quick", limit=20, quiet=True, out="row.h5", overwrite=True)
            >>> print(bench.leaderboard(["row.h5"]).splitlines()[0])
            ## digits, linf 0.15, suite quick version 1, 20 samples, convention any, ranked by Worst case

        Args:
            results: or the paths of their files.
            rank_by: title of the column that ranks; None: AutoAttack, else the worst case; of corruptions their mean.

        Raises:
            BenchError: a file cannot be read, or the results do not compare.
        """
        from bench.leaderboard.render.markdown import render
        from bench.leaderboard.tables.build import build_table

        read = [result if isinstance(result, EvaluationResult) else read_row(Path(result)) for result in results]
        return render(build_table(read, rank_by=rank_by))


sys.modules[__name__].__class__ = _Callable
