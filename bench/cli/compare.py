"""Is one model better than another? Two or more result files, compared sample by sample."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bench.cli import echo
from bench.cli._options import PATH, convention_option, format_option, text_width


@click.command()
@click.argument("results", nargs=-1, required=True, type=PATH)
@convention_option()
@click.option("--column", "titles", multiple=True, help="Show this column only, such as AutoAttack. Repeatable.")
@click.option(
    "--by-class", is_flag=True, help="Each class on its own, in the column that decides, or in each --column."
)
@format_option
def command(
    results: Sequence[Path], convention: Any, titles: tuple[str, ...], by_class: bool, form: str | None
) -> None:
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
    from bench.leaderboard.render.comparison import comparison_text
    from bench.results.file import read_result

    found = [read_result(path) for path in results]
    refuse_convention(found)
    echo(comparison_text(found, convention, titles, text_width(form), by_class))
