"""Is one model better than another? Two or more result files, compared sample by sample."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from bench.cli import echo
from bench.cli._options import PATH, convention_option


@click.command()
@click.argument("results", nargs=-1, required=True, type=PATH)
@convention_option()
@click.option("--column", "titles", multiple=True, help="Show this column only, such as AutoAttack. Repeatable.")
@click.option(
    "--by-class", is_flag=True, help="Each class on its own, in the column that decides, or in each --column."
)
def command(results: Sequence[Path], convention: str, titles: tuple[str, ...], by_class: bool) -> None:
    """Compare the first result file with each of the others, on the same samples.

    Why pairs: both models met the same images, and an image that both get right, or both wrong, says nothing about
    which is better. The 95 % interval of a row on the leaderboard is for one model alone: it counts the luck of
    the draw that both share. Rows whose intervals overlap can differ clearly, sample by sample.

    McNemar's test looks only at the samples where one alone is right. Were the models equally good, each of these
    would be a coin toss; p is how often fair coins fall at least as unevenly. The interval of the difference is that
    of Bonett and Price for pairs. With several files, Holm's p allows for the number of comparisons, and decides.
    Interval and p can disagree near 5 %: p decides.

    Of results under corruptions, the means are compared: an image counts by the share of its corrupted versions that
    are right, and p is that of the test that goes with the interval.

    With --by-class the images of each true class are compared on their own. Holm's p then allows for all classes of
    all comparisons: with ten classes, one is likely to have p below 0.05 by chance alone in two runs of five.

    With --by-class the images of each true class are compared on their own, in the column that decides or in each
    --column. Holm's p then allows for every class of every file, and says which classes tell the models apart.

    p speaks of these trained models, not of the methods. Another seed is another model, and what differs in their
    training is named below the tables: for methods, compare means over seeds with `bench leaderboard --merge-seeds`.

    \b
    bench compare runs/digits/cnn-small/{trades,at,mart}/seed-0/results/full-v3.h5
    bench compare a.h5 b.h5 --column Clean --column "Worst case"
    bench compare a.h5 b.h5 --by-class
    """
    from bench.cli.leaderboard import refuse_convention
    from bench.leaderboard.tables.attacks import AVERAGE
    from bench.leaderboard.tables.build import build_table
    from bench.leaderboard.tables.row_names import row_names
    from bench.results.comparison import compare, compare_by_class
    from bench.results.file import read_result
    from bench.text import escape

    found = [read_result(path) for path in results]
    refuse_convention(found)
    names = row_names(found)
    shown: Any = convention
    corrupted = bool(found[0].corruptions)
    board = build_table(found, shown, kind="corruptions" if corrupted else "attacks")
    decisive = board.rank_by
    texts = list(map(escape, names))
    doubtful = {escape(row.name) for row in board.rows if not row.ranked}
    if by_class:
        each = {title: compare_by_class(names, found, title, shown) for title in titles or [decisive]}
        tests = sum(map(len, each[next(iter(each))]))
        sections = [section for title, those in each.items() for section in _class_sections(texts, title, those, tests)]
    else:
        tests = len(others := texts[1:])
        comparisons = compare(names, found, shown, [*titles, decisive] if titles else None)
        sections = [
            (
                other,
                _table({title: comparison[title] for title in titles or comparison}, tests),
                _verdict(texts[0], other, decisive, comparison[decisive], len(found[0].label), tests),
            )
            for other, comparison in zip(others, comparisons, strict=True)
        ]
    echo(f"## {escape(board.title.rpartition(', ranked by ')[0])}\n")
    for other, table, verdict in sections:
        doubts = "".join(
            f" The numbers of {name} cannot be believed." for name in (texts[0], other) if name in doubtful
        )
        echo(f"### {texts[0]} against {other}\n\n{table}\n\n{verdict}{doubts}\n")
    echo(_legend(texts[0], tests, corrupted))
    for note in board.notes:
        if not note.startswith(f"Column {AVERAGE}:"):  # a mean of two columns has no outcomes to pair
            echo(f"- {escape(note)}")


def _class_sections(
    names: Sequence[str], title: str, comparisons: Sequence[Mapping[int, Any]], tests: int
) -> Iterator[tuple[str, str, str]]:
    """Of each other result: its name, the table of one column by class, and a sentence on the classes that differ."""
    from bench.results.estimates import LEVEL
    from bench.text import escape

    for other, comparison in zip(names[1:], comparisons, strict=True):
        table = _table({f"class {number}": found for number, found in comparison.items()}, tests, f"{title}:")
        apart = [str(number) for number, found in comparison.items() if found.holm_p_value < LEVEL]
        where = f"classes that tell them apart: {', '.join(apart)}" if apart else "no class tells them apart"
        yield other, table, f"In the column {escape(title)}, {where} (Holm, {tests} tests)."


def _table(comparison: Mapping[str, Any], comparisons: int, heading: str = "Column") -> str:
    from bench.leaderboard.render.markdown import padded_table
    from bench.text import escape

    rows = [
        {
            escape(heading): escape(title),
            "First": f"{found.accuracies[0]:.1f}",
            "Second": f"{found.accuracies[1]:.1f}",
            "Difference": f"{found.difference:+.1f}",
            "95 % interval": _interval(found.interval, "+.1f"),
            "Only first right": str(found.only_first),
            "Only second right": str(found.only_second),
            "p": _p_value(found.p_value),
            **({"p (Holm)": _p_value(found.holm_p_value)} if comparisons > 1 else {}),
        }
        for title, found in comparison.items()
    ]
    return padded_table(list(rows[0]), [list(row.values()) for row in rows], ("left",))


def _verdict(first: str, other: str, title: str, worst: Any, samples: int, comparisons: int) -> str:
    """One sentence on the column that decides."""
    from bench.results.estimates import LEVEL

    p_value = f"p = {_p_value(worst.holm_p_value)}".replace("= <", "<")
    p_value += f" (Holm, {comparisons} comparisons)" if comparisons > 1 else ""
    if worst.holm_p_value >= LEVEL:
        return (
            f"In the column {title}, {first} and {other} cannot be told apart on these {samples} samples: "
            f"difference {worst.difference:+.1f} points {_interval(worst.interval, '+.1f')}, {p_value}."
        )
    better, lesser, sign = (first, other, 1) if worst.difference > 0 else (other, first, -1)
    interval = sorted(sign * bound for bound in worst.interval)
    return (
        f"In the column {title}, {better} is better than {lesser} by {abs(worst.difference):.1f} points "
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
