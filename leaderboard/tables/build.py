"""Results that compare, as one table: a row per model, best first. Results that do not compare are refused."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from bench.errors import BenchError, unknown_name
from bench.leaderboard.tables.kinds import Kind, columns_of_kind, kind_of
from bench.leaderboard.tables.on_demand import with_asked
from bench.leaderboard.tables.ranking import Ranks, rank_ranges
from bench.leaderboard.tables.row_names import row_names
from bench.leaderboard.tables.rows import merged_cells, row_notes, trust_of
from bench.leaderboard.tables.seeds import same_but_for_the_seed
from bench.leaderboard.tables.table import ColumnFormat, LeaderboardTable, Number, Row, with_columns
from bench.leaderboard.tables.trainings import training_notes
from bench.leaderboard.wording.ranks import meaning
from bench.results.board_rows import of_one_board
from bench.results.comparison import refuse_mixture
from bench.results.file import EvaluationResult
from bench.results.metrics import CLEAN, Convention


def build_table(
    results: Sequence[EvaluationResult],
    convention: Convention = "any",
    merge_seeds: bool = False,
    columns: Sequence[str] = (),
    rank_by: str | None = None,
    kind: Kind | None = None,
) -> LeaderboardTable:
    """The table of results, ranked; rows with an error are last.

    Args:
        results: those to show.
        convention: of success under attack.
        merge_seeds: make one row, their mean, of results that differ only in their training seed.
        columns: titles of those to show, in this order, also of those that are there on demand only; empty: all.
        rank_by: title of the column that puts rows in order; None: the one of the kind of board.
        kind: what the columns show; None: what the results hold.

    Raises:
        BenchError: no result, an empty result, the same result twice, results that differ in suite, data or attacks,
            or no such column.
    """
    if not results:
        raise BenchError("there is no result to show. Give at least one result file.")
    refuse_mixture(row_names(results), results)
    results = of_one_board(results)
    held: Kind = "features" if any(result.features for result in results) else kind_of(results[0])
    board = with_asked(columns_of_kind(kind or held, results, convention), results, convention, columns)
    order_by = _orderable(rank_by or board.rank_by, board.formats)
    groups = same_but_for_the_seed(results) if merge_seeds else [[place] for place in range(len(results))]
    members = [[results[place] for place in group] for group in groups]
    numbers = [[board.numbers[place] for place in group] for group in groups]
    firsts = [seeds[0] for seeds in members]
    rows = [
        Row(name, merged_cells(own), trust_of(seeds), tuple(group))
        for name, own, seeds, group in zip(row_names(firsts), numbers, members, groups, strict=True)
    ]
    believed = [place for place, row in enumerate(rows) if row.ranked]
    ranks = dict(zip(believed, _ranks([numbers[place] for place in believed], board.formats), strict=True))

    def position(place: int) -> tuple[bool, float, float, str]:
        row, sign = rows[place], 1 if board.formats[order_by].lower_is_better else -1
        clean = row.cells[CLEAN].value if CLEAN in row.cells else 0.0
        return not row.ranked, sign * row.cells[order_by].value, -clean, row.name

    order = sorted(range(len(rows)), key=position)
    own_notes = [row_notes(row.name, seeds, merge_seeds) for row, seeds in zip(rows, members, strict=True)]
    notes, numbered = _numbered(order, own_notes, training_notes([row.name for row in rows], firsts))
    counts = [len(group) for group in groups]
    means = f", means over {'/'.join(map(str, sorted(set(counts))))} seeds" if merge_seeds else ""
    tested = isinstance(board.numbers[0][order_by], np.ndarray)
    table = LeaderboardTable(
        title=f"{board.title}{means}, {'ranked' if tested else 'ordered'} by {order_by}",
        rank_by=order_by,
        columns=board.formats,
        rows=tuple(replace(rows[place], notes=numbered[place], ranks=ranks.get(place, {})) for place in order),
        notes=(*notes, *board.notes),
        ranking=meaning(order_by, counts, board.numbers[0][order_by]),
        measure=board.measure,
    )
    return with_columns(table, columns) if columns else table


def _orderable(title: str, formats: Mapping[str, ColumnFormat]) -> str:
    """`title`, if it is that of a column by which rows can be put in order."""
    if title not in formats:
        raise unknown_name("column", title, formats)
    if not formats[title].compares:
        raise BenchError(f"column {title!r} ranks no rows: each was attacked by a loss of its own. Choose another.")
    return title


def _ranks(
    rows: Sequence[Sequence[Mapping[str, Number]]], formats: Mapping[str, ColumnFormat]
) -> list[dict[str, Ranks | None]]:
    """The ranks that each row, given by its seeds' numbers, may have in every column whose samples are known."""
    ranks: list[dict[str, Ranks | None]] = [{} for _ in rows]
    for title, column in formats.items():
        if column.compares and rows and isinstance(rows[0][0][title], np.ndarray):
            found = rank_ranges([np.stack([seed[title] for seed in row]) for row in rows])
            for row, one in zip(ranks, found, strict=True):
                row[title] = one
    return ranks


def _numbered(
    order: Sequence[int], own: Sequence[Sequence[str]], shared: Sequence[tuple[str, Sequence[int]]]
) -> tuple[list[str], dict[int, tuple[int, ...]]]:
    """Notes in the order of the rows, those of several rows last; and the numbers of each row's notes, from 1."""
    texts: list[str] = []
    numbers: dict[int, tuple[int, ...]] = {}
    for row in order:
        numbers[row] = tuple(range(len(texts) + 1, len(texts) + len(own[row]) + 1))
        texts += own[row]
    for text, rows in shared:
        texts.append(text)
        numbers |= {row: (*numbers[row], len(texts)) for row in rows}
    return texts, numbers
