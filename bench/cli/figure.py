"""Draw the paper's figures, training curves, and adversarial examples, as PNG and SVG."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from bench.cli import echo
from bench.cli._options import COUNT, PATH, convention_option, data_option, device_option, plugin_option, refuse_idle
from bench.errors import BenchError


@click.group()
def command() -> None:
    """Draw figures from result files and run folders; each becomes STEM.png and STEM.svg.

    \b
    bench eval runs/cifar10/resnet18/at/seed-0 --suite figure4
    bench figure 4 runs/cifar10/resnet18/*/seed-0/results/figure4-v1.h5 --out figure4
    bench figure training runs/cifar10/resnet18/*/seed-0 --out training
    """


out_option = click.option("--out", required=True, metavar="STEM", type=PATH, help="Where to: STEM.png and STEM.svg.")
successes_option = convention_option("Which images count as a success, as for `bench leaderboard`.")


def look_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of figures that look at a model."""
    function = click.option("--dataset", help="What to look at.  [default: what the run was trained on]")(function)
    radius = "Radius instead of the dataset's, such as 0.3 or l2=0.5."
    function = click.option("--eps", multiple=True, metavar="[NORM=]VALUE", help=radius)(function)
    function = click.option("--seed", default=0, help="Seed of the attack.")(function)
    return data_option(device_option(plugin_option(function)))


def arguments(name: str) -> Callable[..., Any]:
    """One path or more."""
    return click.argument("paths", nargs=-1, required=True, metavar=f"{name}...", type=PATH)


@command.command("2")
@arguments("RUN")
@click.option("--suite", default="figure2", help="A suite of features: its attack is run.")
@click.option("--limit", type=click.IntRange(min=2), default=2000, help="As for `bench eval`.")
@look_options
@out_option
def scatter(paths: Sequence[Path], suite: str, limit: int, out: Path, **look: Any) -> None:
    """Two-dimensional features by class, clean above adversarial, a column per RUN. Stars are learned prototypes.

    \b
    bench train --defense at --dataset mnist --backbone lenetpp
    bench train --defense adv-dpnp --dataset mnist --backbone lenetpp
    bench figure 2 runs/mnist/lenetpp/{at,adv-dpnp}/seed-0 --out figure2
    """
    from bench.evaluation.pictures import feature_cloud, run_names
    from bench.leaderboard.figures.feature_scatter import feature_scatter
    from bench.system.progress import EvaluationProgress

    found = [feature_cloud(_request(path, suite, limit, **look), EvaluationProgress()) for path in paths]
    names = run_names(paths, [cloud.model for cloud in found])
    _write(feature_scatter([replace(cloud, model=name) for name, cloud in zip(names, found, strict=True)]), out)


@command.command("3")
@arguments("RESULT")
@click.option("--from", "lowest", type=float, default=0.0, help="Where the axis begins, in percent.")
@out_option
def severities(paths: Sequence[Path], lowest: float, out: Path) -> None:
    """Accuracy by severity of corruptions, a bar per RESULT of the suite `corruptions`.

    \b
    bench figure 3 runs/cifar10/resnet18/*/seed-0/results/corruptions-v1.h5 --from 60 --out figure3
    """
    from bench.leaderboard.figures.severity_bars import severity_figure
    from bench.results.file import read_result

    _write(severity_figure([read_result(path) for path in paths], lowest), out)


@command.command("4")
@arguments("RESULT")
@successes_option
@out_option
def radii(paths: Sequence[Path], convention: Any, out: Path) -> None:
    """Accuracy over the radius of FGSM and PGD, from RESULTs of the suite `figure4`; a panel per dataset.

    \b
    bench figure 4 runs/cifar*/resnet18/adv-dpnp/seed-0/results/figure4-v1.h5 --out figure4
    """
    _draw_radii(paths, convention, out, "figure4")


@command.command()
@arguments("RESULT")
@successes_option
@click.option("--distances", is_flag=True, help="From the distances that attacks found, at every radius.")
@click.option("--attack", "labels", multiple=True, metavar="LABEL", help="With --distances: this attack's. Repeatable.")
@out_option
def curve(paths: Sequence[Path], convention: Any, distances: bool, labels: Sequence[str], out: Path) -> None:
    """Accuracy over the radius, from any RESULTs that hold an attack at several radii.

    With --distances, from the distance at which each image was broken, so that one attack gives every radius. The
    suite `curve` looks for the nearest adversarial images. A distance that was found is an upper bound of the smallest
    one, and accuracy counted from it an upper bound of robust accuracy. Each RESULT's line is of the smallest distance
    that any of its attacks in that norm found; --attack shows attacks on their own instead.

    \b
    bench figure curve runs/cifar10/resnet18/*/seed-0/results/table3-v1.h5 --out table3
    bench figure curve runs/digits/cnn-small/*/seed-0/results/curve-v1.h5 --distances --out curve
    """
    if not distances:
        refuse_idle(["labels"], "it chooses whose distances are drawn. Add --distances.")
        _draw_radii(paths, convention, out, None)
        return
    from bench.leaderboard.figures.robustness_curve import distance_figure
    from bench.results.file import read_result

    refuse_idle(["convention"], "distances are of images found on the way.")
    _write(distance_figure([read_result(path) for path in paths], labels), out)


def _draw_radii(paths: Sequence[Path], convention: Any, out: Path, suite: str | None) -> None:
    from bench.leaderboard.figures.robustness_curve import radius_figure
    from bench.results.file import read_result

    _write(radius_figure([read_result(path) for path in paths], convention, suite), out)


@command.command()
@arguments("RESULT")
@successes_option
@out_option
def classes(paths: Sequence[Path], convention: Any, out: Path) -> None:
    """Accuracy by class under each attack, and which class the worst case leads to: two heat maps per RESULT.

    \b
    bench figure classes runs/digits/cnn-small/{at,trades}/seed-0/results/full-v3.h5 --out classes
    """
    from bench.leaderboard.figures.class_maps import class_figure
    from bench.results.file import read_result

    _write(class_figure([read_result(path) for path in paths], convention), out)


@command.command()
@arguments("RUN")
@out_option
def training(paths: Sequence[Path], out: Path) -> None:
    """Loss terms and recorded values over epochs, a line per RUN.

    \b
    bench figure training runs/digits/cnn-small/{at,trades}/seed-0 --out training
    """
    from bench.evaluation.pictures import run_names
    from bench.leaderboard.figures.training_curves import training_curves
    from bench.results.trainings import read_history

    histories = [read_history(path) for path in paths]
    _write(training_curves(dict(zip(run_names(paths), histories, strict=True))), out)


@command.command()
@click.argument("source", metavar="RESULT_OR_RUN", type=PATH)
@click.option("--count", type=COUNT, default=4, help="Examples, at most.")
@click.option("--attack", metavar="LABEL", help="Column title of the attack.  [default: the last]")
@click.option("--suite", default="quick", help="Of a run folder: where the attack is from.")
@click.option("--limit", type=COUNT, default=64, help="Of a run folder: images to look among.")
@look_options
@out_option
def sheet(source: Path, count: int, attack: str | None, suite: str, limit: int, out: Path, **look: Any) -> None:
    """Images that an attack broke: clean, adversarial, and their difference.

    From a result file, those that --save-adversarials kept; from a run folder, new ones.

    \b
    bench figure sheet runs/digits/cnn-small/at/seed-0 --out sheet
    bench figure sheet runs/digits/cnn-small/at/seed-0/results/full-v3.h5 --attack AutoAttack --out sheet
    """
    from bench.evaluation.pictures import crafted_examples, kept_examples
    from bench.leaderboard.figures.adversarial_sheet import adversarial_sheet
    from bench.system.progress import EvaluationProgress

    if source.suffix == ".h5":
        refuse_idle(
            ["suite", "limit", "dataset", "eps", "seed"],
            f"{source} holds the images that were kept. To craft others, give a run folder.",
        )
        found = kept_examples(source, look["data"], attack, count)
    else:
        found = crafted_examples(_request(source, suite, limit, **look), attack, count, EvaluationProgress())
    _write(adversarial_sheet(found), out)


def _request(run: Path, suite: str, limit: int, eps: tuple[str, ...], **look: Any) -> Any:
    from bench.cli.eval import parse_radii
    from bench.evaluation.request import EvaluationRequest

    if run.suffix == ".h5":
        raise BenchError(f"{run} is a result file, and this figure looks at models: give run folders.")
    return EvaluationRequest(suite=suite, checkpoint=run, limit=limit, epsilons=parse_radii(eps), **look)


def _write(figure: Any, out: Path) -> None:
    from bench.leaderboard.figures.canvas import write_figure

    for path in write_figure(figure, out):
        echo(path)
