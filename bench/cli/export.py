"""Write a model or a result in the form that RobustBench or the Hugging Face Hub reads."""

from pathlib import Path

import click

from bench.cli import echo
from bench.cli._options import COUNT, PATH, named_checkpoint, plugin_option, which_option

overwrite_option = click.option("--overwrite", is_flag=True, help="Replace existing files that differ.")


@click.group()
def command() -> None:
    """Write a model or a result in the form that others read.

    \b
    bench export robustbench runs/cifar10/resnet18/trades/seed-0 --out models
    bench export model-info runs/cifar10/resnet18/trades/seed-0/results/autoattack-v1.h5
    bench export huggingface runs/cifar10/resnet18/trades/seed-0 trades-resnet18
    """


@command.command()
@click.argument("checkpoint", type=PATH)
@which_option
@click.option(
    "--out",
    type=PATH,
    default=Path("models"),
    help="RobustBench's model_dir; written is OUT/<dataset>/<threat model>/<NAME>.pt and .json.",
)
@click.option("--name", help="Such as Smith2026Better.  [default: defense, backbone and seed]")
@click.option(
    "--threat-model", type=click.Choice(["Linf", "L2", "corruptions"]), help="[default: the norm it was trained under]"
)
@overwrite_option
@plugin_option
def robustbench(
    checkpoint: Path, which: str | None, out: Path, name: str | None, threat_model: str | None, overwrite: bool
) -> None:
    """Write a CHECKPOINT so that RobustBench's load_model and benchmark() take it.

    load_model knows only the names in its table: `bench.interop.zoo.register(OUT)` adds those exported to OUT.

    \b
    bench export robustbench runs/cifar10/resnet18/trades/seed-0 --out models --name Mine2026Trades
    bench eval --model robustbench:Mine2026Trades --dataset cifar10 --suite autoattack
    """
    from bench.interop.zoo import export_checkpoint, export_path
    from bench.models.checkpoints import load_checkpoint

    loaded = load_checkpoint(named_checkpoint(checkpoint, which))
    path = export_path(loaded, out, name, threat_model)
    export_checkpoint(loaded, path, replace=overwrite)
    echo(path)


@command.command("model-info")
@click.argument("result", type=PATH)
@click.option(
    "--out", type=PATH, help="[default: model_info/<dataset>/<threat model>/<model>.json, RobustBench's layout]"
)
@click.option("--link", help="Address of the paper.  [default: that of the defense's paper; else required]")
@click.option("--title", "name", help="Of the paper.  [default: the model's name]")
@click.option("--authors", help="Such as 'A. One, B. Two'.  [required]")
@click.option("--venue", help="Such as 'ICML 2026'.  [default: N/A]")
@click.option("--architecture", help="Such as WideResNet-34-10.  [default: the backbone; else required]")
@click.option(
    "--reported", help="Robust accuracy that the authors report, in percent.  [default: of own runs the measured one]"
)
@click.option(
    "--additional-data/--no-additional-data",
    default=None,
    help="Trained on more than the dataset's images?  [default: of own runs on the dataset itself, if with --extra]",
)
@click.option(
    "--forward-passes", "number_forward_passes", type=COUNT, help="Of the network, per image.  [default: of own runs 1]"
)
@click.option("--footnote", help="[default: another radius than the board's, or a part of the test set]")
@overwrite_option
@plugin_option
def model_info(result: Path, out: Path | None, overwrite: bool, **details: str | bool | int | None) -> None:
    """Write a RESULT as the JSON file that RobustBench keeps for a row of its leaderboard.

    Accuracies are in percent, of the first AutoAttack column under the suite's main threat model; `external` is the
    worst case over all attacks of that threat model, where it is lower. Own runs are those of `bench train` with a
    defense of this benchmark; what a result does not know is asked for.

    \b
    bench export model-info results/mine-autoattack-v1.h5 --title "My paper" --authors "A. One" --venue "ICML 2026"
    """
    from bench.interop.model_info import from_result, write_model_info
    from bench.results.file import read_result

    read = read_result(result)
    info, threat_model = from_result(read, {key: value for key, value in details.items() if value is not None})
    stem = "".join(mark if mark.isalnum() or mark in "-_." else "_" for mark in str(read.run.get("model"))).lstrip(".")
    path = out or Path("model_info") / str(info.dataset) / threat_model / f"{stem or 'model'}.json"
    write_model_info(info, path, replace=overwrite)
    echo(path)


@command.command()
@click.argument("checkpoint", type=PATH)
@which_option
@click.argument("folder", type=PATH)
@click.option("--result", type=PATH, help="A result of this checkpoint: its row is on the card.")
@overwrite_option
@plugin_option
def huggingface(checkpoint: Path, which: str | None, folder: Path, result: Path | None, overwrite: bool) -> None:
    """Write a CHECKPOINT as a FOLDER for the Hugging Face Hub: model.safetensors, config.json and a model card.

    \b
    bench export huggingface runs/cifar10/resnet18/trades/seed-0 trades-resnet18 --result autoattack-v1.h5
    bench eval trades-resnet18 --suite autoattack
    """
    from bench.interop.model_cards import export_model
    from bench.leaderboard.render.markdown import render_row
    from bench.models.checkpoints import load_checkpoint
    from bench.results.file import read_result

    loaded = load_checkpoint(named_checkpoint(checkpoint, which))
    read = None if result is None else read_result(result)
    board = "" if read is None else render_row(read)
    export_model(loaded, folder, read, board, replace=overwrite)
    echo(folder)
