"""One result against others, as Markdown or as plain text: the sentences first, then the numbers they rest on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.leaderboard.render.markdown import padded_table
from bench.leaderboard.render.plain import filled, plain_table
from bench.leaderboard.tables.attacks import AVERAGE
from bench.leaderboard.tables.build import build_table
from bench.leaderboard.tables.row_names import row_names
from bench.results.comparison import PairedDifference, compare, compare_by_class
from bench.results.estimates import LEVEL
from bench.results.file import EvaluationResult
from bench.results.metrics import Convention
from bench.text import escape, one_line


def comparison_text(
    results: Sequence[EvaluationResult],
    convention: Convention,
    titles: Sequence[str],
    width: int | None,
    by_class: bool = False,
) -> str:
    """The first result against each of the others: a sentence each, a table each, what they mean, and notes.

    Args:
        results: those to compare.
        convention: of success under attack.
        titles: of the columns to show; empty: all, or by class the one that decides.
        width: of plain text; None: Markdown.
        by_class: compare the images of each true class on their own.

    Raises:
        BenchError: as `bench.results.comparison.compare`.
    """
    shown, sharps = (escape, "#") if width is None else (one_line, "")
    names = row_names(results)
    corrupted = bool(results[0].corruptions)
    board = build_table(results, convention, kind="corruptions" if corrupted else "attacks")
    first, decisive, others = names[0], board.rank_by, len(names) - 1
    if by_class:
        found = {title: compare_by_class(names, results, title, convention) for title in titles or [decisive]}
        parts = _class_parts(names, found, shown)
        tests = sum(len(part.rows) for part in parts[:others])
    else:
        comparisons = compare(names, results, convention, [*titles, decisive] if titles else None)
        parts = _parts(names, comparisons, titles, decisive, len(results[0].label), shown)
        tests = others
    doubtful = {row.name for row in board.rows if not row.ranked}

    def paragraph(text: str, indent: str = "") -> str:
        return text if width is None else filled(text, width, indent)

    sentences, tables = [], []
    for part in parts:
        doubts = [
            f" The numbers of {shown(name)} cannot be believed." for name in (first, part.other) if name in doubtful
        ]
        sentences.append(paragraph("".join([part.sentence, *doubts])))
        heading = paragraph(f"{sharps * 3} {shown(first)} against {shown(part.other)}".strip())
        tables += [heading, _table(part, tests, width)]
    title = paragraph(f"{sharps * 2} {shown(board.title.rpartition(', ranked by ')[0])}".strip())
    # A mean of two columns has no outcomes to pair.
    notes = [paragraph(f"- {shown(note)}", "  ") for note in board.notes if not note.startswith(f"Column {AVERAGE}:")]
    return "\n\n".join(
        [*sentences, title, *tables, "\n".join([paragraph(_legend(shown(first), tests, corrupted)), *notes])]
    )


@dataclass(frozen=True)
class _Part:
    """The first result against another one."""

    other: str
    sentence: str
    heading: str
    rows: Mapping[str, PairedDifference]


def _parts(
    names: Sequence[str],
    comparisons: Sequence[Mapping[str, PairedDifference]],
    titles: Sequence[str],
    decisive: str,
    samples: int,
    shown: Callable[[str], str],
) -> list[_Part]:
    first, count = shown(names[0]), len(names) - 1
    return [
        _Part(
            other,
            _sentence(first, shown(other), shown(decisive), found[decisive], samples, count),
            "Column",
            {shown(title): found[title] for title in titles or found},
        )
        for other, found in zip(names[1:], comparisons, strict=True)
    ]


def _class_parts(
    names: Sequence[str],
    comparisons: Mapping[str, Sequence[Mapping[int, PairedDifference]]],
    shown: Callable[[str], str],
) -> list[_Part]:
    parts = []
    for title, those in comparisons.items():
        tests = sum(map(len, those))
        for other, found in zip(names[1:], those, strict=True):
            apart = [str(number) for number, one in found.items() if one.holm_p_value < LEVEL]
            where = f"classes that tell them apart: {', '.join(apart)}" if apart else "no class tells them apart"
            sentence = f"In the column {shown(title)}, {where} (Holm, {tests} tests)."
            rows = {f"class {number}": one for number, one in found.items()}
            parts.append(_Part(other, sentence, f"{shown(title)}:", rows))
    return parts


def _table(part: _Part, comparisons: int, width: int | None) -> str:
    rows = [
        {
            part.heading: title,
            "First": f"{found.accuracies[0]:.1f}",
            "Second": f"{found.accuracies[1]:.1f}",
            "Difference": f"{found.difference:+.1f}",
            "95 % interval": _interval(found.interval, "+.1f"),
            "Only first right": str(found.only_first),
            "Only second right": str(found.only_second),
            "p": _p_value(found.p_value),
            **({"p (Holm)": _p_value(found.holm_p_value)} if comparisons > 1 else {}),
        }
        for title, found in part.rows.items()
    ]
    headers, cells = list(rows[0]), [list(row.values()) for row in rows]
    if width is None:
        return padded_table(headers, cells, ("left",))
    # The p that decides is the last.
    return plain_table(headers, cells, width, first=(0, 1, 2, 3, 4, len(headers) - 1), others="--format markdown")


def _sentence(first: str, other: str, title: str, decisive: PairedDifference, samples: int, comparisons: int) -> str:
    """Who is better, by the column that decides."""
    p_value = f"p = {_p_value(decisive.holm_p_value)}".replace("= <", "<")
    p_value += f" (Holm, {comparisons} comparisons)" if comparisons > 1 else ""
    if decisive.holm_p_value >= LEVEL:
        return (
            f"In the column {title}, {first} and {other} cannot be told apart on these {samples} samples: "
            f"difference {decisive.difference:+.1f} points {_interval(decisive.interval, '+.1f')}, {p_value}."
        )
    better, lesser, sign = (first, other, 1) if decisive.difference > 0 else (other, first, -1)
    interval = sorted(sign * bound for bound in decisive.interval)
    return (
        f"In the column {title}, {better} is better than {lesser} by {abs(decisive.difference):.1f} points "
        f"{_interval(interval, '.1f')}, {p_value}."
    )


def _legend(first: str, comparisons: int, corrupted: bool) -> str:
    test = "of the test that goes with the interval" if corrupted else "exact McNemar test"
    versions = " Over corruptions an image counts by the share of its versions that are right." if corrupted else ""
    return (
        f"Accuracy in percent, differences in points: {first} minus the second. 95 % interval: Bonett and Price's for "
        f"pairs{', for one comparison alone' if comparisons > 1 else ''}. p: {test}"
        f"{f'; Holm: corrected for {comparisons} comparisons' if comparisons > 1 else ''}.{versions} "
        "p speaks of these trained models, not of the methods: another seed is another model."
    )


def _interval(bounds: Sequence[float], form: str) -> str:
    low, high = (format(bound, form) for bound in bounds)
    return f"[{low}, {high}]"


def _p_value(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3g}"
