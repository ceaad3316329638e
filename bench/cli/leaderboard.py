"""A leaderboard from result files: on the terminal, as HTML, Markdown, CSV or JSON."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from bench.cli import echo
from bench.cli._options import PATH, convention_option, format_option, refuse_idle, text_width
from bench.errors import BenchError


@click.command()
@click.argument("results", nargs=-1, required=True, type=PATH)
@convention_option()
@click.option("--merge-seeds", is_flag=True, help="One row for runs that differ only in their seed: mean ± (sd).")
@click.option(
    "--out",
    type=PATH,
    help="Also write the board to this file: .html (a page to sort, filter and open), .md, .csv or .json.",
)
@click.option("--columns", help='Only these, with commas: "Clean,PGD-20,AutoAttack". Where it is printed and in .md.')
@click.option(
    "--rank-by",
    metavar="COLUMN",
    help="Rank by this column.  [default: AutoAttack under the suite's main threat model, else the worst case in its "
    "norm; the mean over corruptions]",
)
@click.option(
    "--folder",
    is_flag=True,
    help="--out is a folder: one page for each dataset, threat model and suite version, and index.html.",
)
@format_option
def command(
    results: Sequence[Path], out: Path | None, columns: str | None, folder: bool, form: str | None, **options: Any
) -> None:
    """Print a table of result files: one row per model, in the order of the column that its title names.

    All numbers come from the per-sample outcomes in the files. A rank such as 1-4 holds every place that a row may
    have, for all rows together with 95 %: all pairs are tested on the same samples (exact McNemar tests, Holm), over
    seeds on samples and seeds. Bold numbers are those that no row is significantly better than. The ± is half of a
    95 % interval of one row alone; `bench compare` shows by how much two rows differ. A folder stands for the result
    files in it. Files of different suites, versions, datasets or samples are refused, but for a page, CSV or JSON
    file, which show each group on its own. Differences in the training of the rows are noted below. Results of the
    suites `corruptions` and `features` get the columns of the Adv-DPNP paper's Tables 5 and 4; on a page, a row opens
    to every corruption at every severity.

    --columns can also ask for columns that no board has by itself: of any column, `AutoAttack: class 3`, `AutoAttack:
    worst class` or `AutoAttack: worst 30 % of classes`; of an attack, `PGD-20: first to break` (the share of images
    that it breaks and no attack before it does) and, of a cascade of attacks, `AutoAttack: stage 2`; from the distances
    that attacks found, `FMN l2: at 0.25`, an upper bound of robust accuracy at that radius, and `FMN l2: optimality`.

    On a terminal the table is plain text that fits its width: columns that do not fit are left out, and counted.
    Elsewhere, as in a file or a pipe, it is Markdown.

    The HTML page is one file that needs no network: open it from disk, mail it, or put it on any web server.

    \b
    bench leaderboard runs/digits/cnn-small/*/seed-0/results/full-v3.h5
    bench leaderboard runs/digits/cnn-small/*/*/results/full-v3.h5 --merge-seeds --out board.html
    bench leaderboard runs/digits/cnn-small/*/*/results/full-v3.h5 --columns "Clean,PGD-20,AutoAttack"
    bench leaderboard runs/digits/cnn-small/*/*/results/full-v3.h5 --columns "AutoAttack,AutoAttack: worst class"
    bench leaderboard runs/digits/cnn-small/*/*/results/full-v3.h5 --rank-by "Worst case"
    bench leaderboard runs --folder --out boards
    """
    if columns is not None and (folder or (out is not None and out.suffix != ".md")):
        raise BenchError("--columns is for the terminal and .md files: pages, CSV and JSON hold every column.")
    paths = list(_result_files(results))
    if folder:
        refuse_idle(["form"], "--folder prints no table. Leave out one of them.")
        _write_folder(paths, out, **options)
    else:
        show_board(paths, out, columns=columns, form=form, **options)


def refuse_convention(results: Sequence[Any]) -> None:
    """Refuse --convention where no result is of attacks."""
    if not any(result.attacks for result in results):
        refuse_idle(["convention"], "none of the results is of attacks, and it says which of their images count.")


def show_board(
    paths: Sequence[Path],
    out: Path | None,
    convention: Any = "any",
    merge_seeds: bool = False,
    columns: str | None = None,
    rank_by: str | None = None,
    apart: bool = False,
    form: str | None = None,
) -> None:
    """Print the board of result files, in the `form` of --format, and write it to `out` if given.

    Results that do not compare are refused where there would be one table; `apart`, each group is printed as its own.
    """
    from bench.leaderboard.render.board_data import rankings
    from bench.leaderboard.render.files import require_form, write_leaderboard
    from bench.leaderboard.render.markdown import render
    from bench.leaderboard.render.plain import render_plain
    from bench.leaderboard.tables.build import build_table
    from bench.results.board_rows import read_row
    from bench.results.comparison import groups_that_compare
    from bench.text import one_line

    if out is not None:
        require_form(out)
    results = [read_row(path) for path in paths]
    refuse_convention(results)
    one_table = not apart and (out is None or out.suffix == ".md")
    groups = [results] if one_table else groups_that_compare(results)
    titles = [title.strip() for title in columns.split(",")] if columns else []
    tables = [
        build_table(group, convention, merge_seeds, titles, column)
        for group, column in zip(groups, rankings(groups, convention, rank_by), strict=True)
    ]
    width = text_width(form)
    texts = [render(table, one_line) if width is None else render_plain(table, width) for table in tables]
    if out is not None:
        write_leaderboard(results, out, convention, merge_seeds, titles, rank_by)
    for text in texts:
        echo(text)


def _write_folder(
    paths: Sequence[Path], out: Path | None, convention: Any, merge_seeds: bool, rank_by: str | None
) -> None:
    from bench.leaderboard.render.files import write_folder
    from bench.results.board_rows import read_row

    if out is None:
        raise BenchError("--folder needs a folder to write to. Add --out boards.")
    results = [read_row(path) for path in paths]
    refuse_convention(results)
    for path in write_folder(results, out, convention, merge_seeds, rank_by):
        echo(f"{path}")


def _result_files(paths: Sequence[Path]) -> Iterator[Path]:
    """The files among the paths, and the result files below the folders among them, without the images beside them.

    Raises:
        BenchError: a folder holds no result file.
    """
    from bench.results.board_rows import row_files

    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = row_files(path)
        if not found:
            raise BenchError(f"no result file in {str(path)!r}. Write some there with `bench eval`.")
        yield from found
