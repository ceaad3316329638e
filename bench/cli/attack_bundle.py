"""Write images and model of a row as a folder, for whoever wants to break more of it."""

from pathlib import Path
from typing import Any

import click

from bench.cli import echo
from bench.cli._options import PATH, checkpoint_or_model, data_option, model_options, plugin_option


@click.command()
@click.argument("row", type=PATH)
@click.option("--checkpoint", type=PATH, help="Its model.  [default: the one of the run that the row lies in]")
@model_options
@click.option("--dataset", help="Where the data is here.  [default: the dataset that the row names]")
@click.option("--out", type=PATH, help="The folder, a new one.  [default: ROW-attack]")
@data_option
@plugin_option
def command(row: Path, checkpoint: Path | None, model: str | None, out: Path | None, **options: Any) -> None:
    """Write a ROW as a folder with its images, labels and model, to be attacked by whatever you have.

    README.md in it shows how to call the model (`forward`), how to see which images count (`replay`), and how to send
    them. A checkpoint of `bench train` is in the folder; any other model is named again where it is needed.

    \b
    bench attack-bundle boards/digits/at-0.h5 --checkpoint runs/digits/cnn-small/at/seed-0
    """
    from bench.results.file import read_result
    from bench.submissions.attack_bundle import write_attack_bundle
    from bench.submissions.bundle import own_checkpoint
    from bench.trust.verification import VerificationRequest

    checkpoint, model = checkpoint_or_model(checkpoint, model)
    if checkpoint is None and model is None:
        checkpoint = own_checkpoint(row, read_result(row))
    folder = out or Path(f"{row.stem}-attack")
    write_attack_bundle(VerificationRequest(row, checkpoint=checkpoint, model=model, **options), folder)
    echo(folder)
