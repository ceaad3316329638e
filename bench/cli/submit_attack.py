"""Give a board adversarial images for one of its rows: what is known of it is then lower."""

from pathlib import Path
from typing import Any

import click

from bench.cli import echo
from bench.cli._options import PATH, checkpoint_or_model, device_option, model_options, plugin_option
from bench.errors import BenchError

_SHOWN = 20
"""Refused images that get a line each."""


@click.command()
@click.argument("file", type=PATH)
@click.argument("board", type=PATH, default=Path())
@click.option("--by", required=True, help="Who found the images: the board names them.")
@click.option("--method", default="", show_default=False, help="How, in a few words.")
@click.option("--link", default="", show_default=False, help="To a paper or code.")
@click.option("--checkpoint", type=PATH, help="The row's model.  [default: the one beside FILE]")
@model_options
@device_option
@plugin_option
def command(
    file: Path,
    board: Path,
    by: str,
    method: str,
    link: str,
    checkpoint: Path | None,
    model: str | None,
    device: str,
    **named: Any,
) -> None:
    """Show the images in FILE to the row's model, and keep those that break a sample which stood.

    FILE is an .npz in a folder of `bench attack-bundle`: `index`, which samples of the test split, and `images`, floats
    in [0, 1]. BOARD is the row or the folder it is in.  [default: this folder] Images outside the ball, or that do not
    fool the model, are refused by their number. What is kept is a file beside the row, and `bench leaderboard` then has
    a column of what is best known.

    \b
    bench submit-attack at-0-attack/found.npz boards/digits --by "A. Person" --method "PGD, 10,000 steps"
    """
    from bench.interop.subjects import ModelReference
    from bench.submissions.attacks import submit_attack

    checkpoint, model = checkpoint_or_model(checkpoint, model)
    reference = ModelReference(checkpoint=checkpoint, model=model, **named)
    came = submit_attack(file, board, by, method, link, reference, device)
    for place, reason in list(came.refused.items())[:_SHOWN]:
        echo(f"refused: image {place}, {reason}")
    if len(came.refused) > _SHOWN:
        echo(f"refused: {len(came.refused) - _SHOWN} more")
    if came.file is None:
        raise BenchError(
            f"nothing is new: of {len(came.refused) + came.known} images {len(came.refused)} are refused, and "
            f"{came.known} break samples that were broken before."
        )
    lowered = f"best known {came.before:.1f} -> {came.after:.1f}"
    echo(f"{came.new} samples more are broken, {came.known} were before: {lowered}")
    echo(came.file)
