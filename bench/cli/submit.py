"""Make a bundle of a result, for a maintainer of a board to check."""

from pathlib import Path

import click

from bench.cli import echo
from bench.cli._options import PATH, plugin_option


@click.command()
@click.argument("row", type=PATH)
@click.option(
    "--checkpoint",
    type=PATH,
    help="Its model, as a run folder or checkpoint, which the bundle then holds.  [default: the one of the run that "
    "the row lies in; else whoever checks the row names the model]",
)
@click.option(
    "--adversarials", type=PATH, help="The images behind its broken samples.  [default: ROW.adversarials.h5, beside it]"
)
@click.option("--by", default="", show_default=False, help="Who sends it.")
@click.option("--link", default="", show_default=False, help="To a paper, code or weights.")
@click.option("--out", type=PATH, help="The bundle, a new folder.  [default: MODEL-DATASET-SUITE-DIGEST]")
@plugin_option
def command(
    row: Path, checkpoint: Path | None, adversarials: Path | None, by: str, link: str, out: Path | None
) -> None:
    """Write a ROW, a result of `bench eval --save-adversarials`, as a bundle: a folder of plain files to send.

    It holds the result, the image behind every broken sample, a model card, the recipe of the training, the
    checkpoint, who sends it, and the digest of each. Nothing in it is ever executed.

    \b
    bench eval runs/digits/cnn-small/at/seed-0 --suite full --save-adversarials
    bench submit runs/digits/cnn-small/at/seed-0/results/full-v3.h5 --by "A. Person"
    """
    from bench.leaderboard.render.markdown import render_row
    from bench.results.file import read_result
    from bench.submissions.bundle import own_checkpoint, row_name, write_bundle

    result = read_result(row)
    checkpoint = checkpoint or own_checkpoint(row, result)
    folder = out or Path(row_name(result))
    write_bundle(row, folder, render_row(result), adversarials, checkpoint, by, link)
    echo(folder)
    if checkpoint is None:
        echo("It holds no model: whoever checks it names one. Add --checkpoint RUN to send it.", err=True)
