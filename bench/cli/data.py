"""Look at, or download, the datasets."""

from pathlib import Path

import click

from bench.cli_options import data_option


@click.group()
def command() -> None:
    """What datasets are here, and how to get the others.

    \b
    bench data list
    bench data fetch cifar10 --data DIR
    """


@command.command("list")
@data_option
def list_(data: Path) -> None:
    """Say which datasets are in the data folder."""
    from bench.datasets import dataset_names, describe

    for name in dataset_names():
        click.echo(f"{name:10} {describe(name, data)}")


@command.command()
@click.argument("name")
@data_option
def fetch(name: str, data: Path) -> None:
    """Download a dataset with torchvision, which checks its md5 sums."""
    from bench.datasets import describe, fetch_dataset

    fetch_dataset(name, data)
    click.echo(f"{name}: {describe(name, data)}")
