"""Look at, download, or corrupt the datasets."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import click

from bench.catalogue.names import DATASETS
from bench.cli import echo
from bench.cli._options import COUNT, PATH, data_option, device_option, plugin_option, refuse_idle


@click.group()
def command() -> None:
    """The datasets that are here, and how to get the others.

    \b
    bench data list
    bench data fetch cifar10 --data DIR
    bench data corrupt --dataset cifar10 --out cifar10-C
    bench data exclude npz:generated.npz --dataset cifar10 --out kept.npz
    bench data nearest npz:kept.npz --dataset cifar10 --out nearest
    """


@command.command("list")
@data_option
def list_(data: Path) -> None:
    """Say which datasets are in the data folder."""
    from bench.data.datasets import describe

    for name in DATASETS:
        echo(f"{name:10} {describe(name, data)}")


@command.command()
@click.argument("name")
@data_option
def fetch(name: str, data: Path) -> None:
    """Download a dataset with torchvision, which checks its md5 sums."""
    from bench.data.datasets import describe, fetch_dataset

    fetch_dataset(name, data)
    echo(f"{name}: {describe(name, data)}")


@command.command()
@click.option(
    "--dataset", required=True, help="digits, mnist, cifar10, ... or npz:PATH; its test images are corrupted."
)
@click.option(
    "--out", required=True, type=PATH, help="Folder to write, about 15 MB per 1,000 images of 32x32x3 and corruption."
)
@click.option("--limit", type=COUNT, help="N test images only, as for `bench eval`.")
@click.option("--seed", default=0, help="Seed of the draws.")
@click.option("--corruptions", default="all", help="all (19), common (15), or names with commas.")
@click.option("--processes", type=COUNT, default=1, help="Share the work.")
@data_option
def corrupt(out: Path, corruptions: str, **options: Any) -> None:
    """Write common corruptions of a test set, in the layout of CIFAR-10-C.

    Fifteen corruptions and four extra ones at five severities (Hendrycks & Dietterich 2019), without downloads:
    CORRUPTION.npy, labels.npy, generated.json and preview.png. Lengths are those of CIFAR-10-C, enlarged for images
    with sides above 32. Frost is a drawn texture. Stop it at any time; the same command goes on.

    \b
    bench data corrupt --dataset digits --out digits-C
    bench data corrupt --dataset cifar10 --out cifar10-C --limit 1000 --corruptions fog,frost --processes 4
    """
    from bench.catalogue.corruption_names import ALL_CORRUPTIONS, COMMON_CORRUPTIONS
    from bench.data.corruptions.generating import GenerationRequest, generate
    from bench.system.progress import EvaluationProgress

    named = {"all": ALL_CORRUPTIONS, "common": COMMON_CORRUPTIONS}
    names = named.get(corruptions) or tuple(dict.fromkeys(name.strip() for name in corruptions.split(",")))
    with closing(EvaluationProgress()) as progress:
        request = GenerationRequest(out=out, corruptions=names, **options)
        written = generate(request, partial(progress, "corrupting"))
    kept = len(names) - len(written)
    echo(f"{out}: {len(written)} corruptions written, {kept} kept; see {out / 'preview.png'}")


extra_argument = click.argument("extra", metavar="npz:PATH")
dataset_option = click.option("--dataset", default="cifar10", help="digits, mnist, cifar10, ... or npz:PATH.")


@command.command()
@extra_argument
@dataset_option
@click.option("--out", required=True, type=PATH, help="File to write, with the arrays x_train and y_train.")
@data_option
def exclude(extra: str, dataset: str, out: Path, data: Path) -> None:
    """Write extra training images without those that are test images of a dataset.

    Images are compared in eight bits, exactly; `bench data nearest` shows those that are near. `bench train --extra`
    refuses a file that holds a test image.

    \b
    bench data exclude npz:generated.npz --dataset cifar10 --out kept.npz
    """
    from bench.data.datasets import load_dataset
    from bench.data.extra import write_without_test_images

    kept, left_out = write_without_test_images(extra, load_dataset(dataset, data), out)
    echo(f"{out}: {kept} images, without {left_out} that are test images of {dataset}")


@command.command()
@extra_argument
@dataset_option
@click.option("--limit", type=COUNT, help="Look at N test images only, as `bench eval`.")
@click.option(
    "--features",
    type=PATH,
    metavar="CHECKPOINT",
    help="Look in the feature space of this model too.  [default: pixels]",
)
@click.option("--count", type=COUNT, default=6, help="Pairs to draw.")
@click.option("--out", metavar="STEM", type=PATH, help="Draw the nearest pairs: STEM.png and STEM.svg.")
@data_option
@device_option
@plugin_option
def nearest(
    extra: str,
    dataset: str,
    limit: int | None,
    features: Path | None,
    count: int,
    out: Path | None,
    data: Path,
    device: str,
) -> None:
    """Say how near extra training images come to the test images of a dataset.

    Distances are l2, of pixels in [0, 1], from each test image to the nearest extra image, and for comparison to the
    nearest training image. Images that are shifted or lit otherwise are far in pixels: the features of a model, a
    checkpoint of `bench train`, tell them. A test image among the extra ones is an error, as it is for
    `bench train --extra`.

    \b
    bench data nearest npz:generated.npz --dataset cifar10 --out nearest
    bench data nearest npz:generated.npz --features runs/cifar10/resnet18/at/seed-0 --out nearest
    """
    import numpy as np

    from bench.data.datasets import load_dataset
    from bench.data.extra import nearest, pixels_of, read_extra
    from bench.evaluation.pictures import feature_space, nearest_pairs
    from bench.leaderboard.figures.canvas import write_figure
    from bench.leaderboard.figures.nearest_sheet import nearest_sheet
    from bench.system.devices import choose_device

    if out is None:
        refuse_idle(["count"], "it is of pairs to draw. Add --out STEM.")
    loaded = load_dataset(dataset, data)
    images, place = read_extra(extra, loaded), choose_device(device)
    spaces: dict[str, Any] = {"pixels": pixels_of}
    if features is not None:
        spaces["features"] = feature_space(features, loaded, place)
    test = loaded.test.take(limit or len(loaded.test))
    echo(f"{extra}: {len(images)} images, none of which is one of the {len(loaded.test)} test images of {dataset}.")
    pairs = {}
    for space, points_of in spaces.items():
        rows, distances = nearest(test.to(place), images.to(place), points_of)
        found = {"extra": distances}
        if len(loaded.train):
            found["training"] = nearest(test.to(place), loaded.train.to(place), points_of)[1]
        for name, those in found.items():
            shown = "  ".join(f"{share} %: {np.percentile(those, share):.3g}" for share in (0, 1, 50))
            echo(f"distance to the nearest {name + ' image, by ' + space:27} {shown}")
        pairs[space] = nearest_pairs(loaded, test, images, rows, distances, count)
    if out is None:
        return
    for path in write_figure(nearest_sheet(pairs), out):
        echo(path)
