"""Extra training images: what a batch is made of, what is refused, how near they are, and what is recorded of them."""

import numpy as np
import pytest
import torch
from scipy import stats

from bench.data.batches import mixed_batches, shuffled_batches
from bench.data.datasets import load_dataset
from bench.data.extra import nearest, read_extra, write_without_test_images
from bench.data.splits import Dataset, make_split
from bench.errors import BenchError
from bench.interop.subjects import from_checkpoint
from bench.leaderboard.figures import nearest_sheet
from bench.leaderboard.render.commands import commands
from bench.leaderboard.tables.trainings import training_notes
from bench.models.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from bench.training.request import TrainingRequest
from bench.training.run_folder import identity
from bench.training.train import train
from tests.support.example_results import example, with_run
from tests.support.refusals import refusal


def numbered(first, count):
    """Images of one pixel that show their number, which is their label too."""
    numbers = np.arange(first, first + count)
    return make_split(numbers.astype(np.uint8).reshape(-1, 1, 1, 1), numbers)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_without_extra_images_an_epoch_is_a_permutation():
    batches = list(shuffled_batches(numbered(0, 10), 4, generator(3)))
    expected = torch.randperm(10, generator=generator(3))
    assert [len(labels) for _, labels, _ in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([labels for _, labels, _ in batches]), expected)
    assert all(torch.equal(images.flatten(), labels / 255) for images, labels, _ in batches)
    assert all(torch.equal(indices, labels) for _, labels, indices in batches)


@pytest.mark.parametrize(
    ("count", "size", "share", "own"),
    [(100, 16, 0.7, 7 * [5]), (10, 8, 0.2, [7, 3]), (3, 8, 0.5, [3]), (12, 4, 0.99, 3 * [1])],
)
def test_a_batch_has_its_share_of_extra_images(count, size, share, own):
    batches = list(mixed_batches(numbered(0, count), numbered(200, 20), share, size, generator()))
    assert [len(labels) for _, labels, _ in batches] == len(own) * [size]
    assert [int((labels < 200).sum()) for _, labels, _ in batches] == own
    assert all(torch.equal(images.flatten(), labels / 255) for images, labels, _ in batches)
    for _, labels, indices in batches:  # those of extra images follow
        assert torch.equal(indices, torch.where(labels < 200, labels, labels - 200 + count))
    seen = torch.cat([labels[labels < 200] for _, labels, _ in batches])
    assert len(set(seen.tolist())) == len(seen)


def test_extra_images_are_drawn_alike_and_lie_anywhere_in_a_batch():
    source, drawn, places = generator(), [], []
    for _ in range(60):
        for _, labels, _ in mixed_batches(numbered(0, 40), numbered(200, 5), 0.75, 8, source):
            drawn += labels[labels >= 200].tolist()
            places += torch.nonzero(labels < 200).flatten().tolist()
    assert len(drawn) == 3 * len(places) == 60 * 5 * 6
    assert stats.chisquare(np.bincount(drawn)[200:]).pvalue > 0.01
    assert stats.chisquare(np.bincount(places, minlength=8)).pvalue > 0.01


def some_dataset(levels=255):
    rng = np.random.default_rng(0)
    train, test = (
        make_split(rng.integers(0, levels + 1, (count, 3, 4, 4), np.uint8), np.arange(count) % 3, levels)
        for count in (40, 30)
    )
    return Dataset("some", 3, train, test, {"linf": "8/255"}, 0, False, "")


def saved(path, images, labels, names=("x_train", "y_train")):
    np.savez(path / "extra.npz", **dict(zip(names, (images, labels), strict=True)))
    return f"npz:{path / 'extra.npz'}"


IMAGES, LABELS = np.random.default_rng(1).integers(0, 256, (20, 4, 4, 3), np.uint8), np.arange(20) % 3


@pytest.mark.parametrize("names", [("x_train", "y_train"), ("image", "label")])
def test_both_layouts_are_read(tmp_path, names):
    extra = read_extra(saved(tmp_path, IMAGES, LABELS, names), some_dataset())
    assert torch.equal(extra.images(slice(None)), torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / torch.tensor(255.0))
    assert extra.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("images", "labels", "names", "words"),
    [
        (IMAGES, LABELS, ("x_test", "y_test"), "needs the arrays x_train, y_train or image, label"),
        (IMAGES / 255, LABELS, ("x_train", "y_train"), "x_train in .* is of type float64, expected uint8"),
        (IMAGES, LABELS[:5], ("image", "label"), r"label in .* has shape \(5,\)"),
        (IMAGES[:, :3], LABELS, ("x_train", "y_train"), r"images of \(3, 3, 4\), expected \(3, 4, 4\): some"),
        (IMAGES, LABELS + 1, ("x_train", "y_train"), "holds the label 3; some has 3 classes, from 0"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(tmp_path, images, labels, names, words):
    with pytest.raises(BenchError, match=words):
        read_extra(saved(tmp_path, images, labels, names), some_dataset())


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("images")
    for name, words in ((f"npz:{tmp_path / 'absent.npz'}", "no npz:PATH"), ("cifar10", "no npz:PATH")):
        with pytest.raises(BenchError, match=words):
            read_extra(name, some_dataset())
    with pytest.raises(BenchError, match="cannot be read as an archive"):
        read_extra(f"npz:{tmp_path / 'text.npz'}", some_dataset())


@pytest.mark.parametrize("levels", [255, 16])
def test_a_test_image_is_refused_and_one_that_differs_is_not(tmp_path, levels):
    dataset = some_dataset(levels)
    images = IMAGES.copy()
    images[7] = (255 * dataset.test.images(slice(4, 5))[0]).round().byte().permute(1, 2, 0)
    name = saved(tmp_path, images, LABELS)
    way_out = f"To leave them out: bench data exclude {name} --dataset some --out FILE.npz"
    refusal(lambda: read_extra(name, dataset), "holds test images of some (image 7 is test image 4): ", way_out)
    images[7, 0, 0, 0] ^= 1
    assert len(read_extra(saved(tmp_path, images, LABELS), dataset)) == 20


def test_a_file_is_written_without_test_images_and_no_file_is_replaced(tmp_path):
    dataset = some_dataset()
    images, kept = IMAGES.copy(), np.setdiff1d(np.arange(20), [2, 3, 5, 7, 11, 13])
    images[[2, 3, 5, 7, 11, 13]] = dataset.test.pixels[20:26].permute(0, 2, 3, 1)
    name = saved(tmp_path, images, LABELS, ("image", "label"))
    named = "image 2 is test image 20, image 3 is test image 21, image 5 is test image 22, image 7 is test image 23, "
    refusal(lambda: read_extra(name, dataset), named, "and 1 more)")
    assert write_without_test_images(name, dataset, tmp_path / "kept") == (14, 6)
    extra = read_extra(f"npz:{tmp_path / 'kept'}", dataset)
    assert torch.equal(extra.pixels, torch.from_numpy(images[kept]).permute(0, 3, 1, 2))
    assert extra.labels.tolist() == LABELS[kept].tolist()
    before = (tmp_path / "kept").read_bytes()
    assert write_without_test_images(name, dataset, tmp_path / "kept") == (14, 6)  # the same command, given again
    assert (tmp_path / "kept").read_bytes() == before
    (tmp_path / "kept").write_bytes(before := b"another file")
    refusal(lambda: write_without_test_images(name, dataset, tmp_path / "kept"), "kept exists")
    assert (tmp_path / "kept").read_bytes() == before
    name = saved(tmp_path, images[[2, 3]], LABELS[[2, 3]])
    refusal(lambda: write_without_test_images(name, dataset, tmp_path / "none"), "every image of", "nothing to write")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("numbers", [1, 6 * 48, 2**25])
def test_the_nearest_images_are_those_of_a_search_through_all(numbers, monkeypatch):
    """In parts of one image, of six and of all."""
    dataset = some_dataset()
    pixels = IMAGES.transpose(0, 3, 1, 2).copy()
    pixels[11] = dataset.test.pixels[3].numpy()
    pixels[11, 0, 0, 0] ^= 1  # one level of one pixel away
    monkeypatch.setattr("bench.data.extra._NUMBERS", numbers)
    rows, distances = nearest(dataset.test, make_split(pixels, LABELS))
    wide = dataset.test.pixels.numpy()[:, None].astype(float) - pixels
    expected = np.sqrt((wide**2).sum((2, 3, 4))) / 255
    assert rows.tolist() == expected.argmin(1).tolist()
    np.testing.assert_allclose(distances, expected.min(1), rtol=1e-5)
    assert (rows[3], distances[3]) == (11, pytest.approx(1 / 255))
    # In another space, of three dimensions and far from its origin.
    directions = torch.from_numpy(np.random.default_rng(2).normal(size=(48, 3)))
    rows, distances = nearest(
        dataset.test, make_split(pixels, LABELS), lambda images: (300 + images.double().flatten(1) @ directions).float()
    )
    places = [numbers.reshape(-1, 48) / 255 @ directions.numpy() for numbers in (dataset.test.pixels.numpy(), pixels)]
    expected = np.linalg.norm(places[0][:, None] - places[1], axis=2)
    assert rows.tolist() == expected.argmin(1).tolist()
    np.testing.assert_allclose(distances, expected.min(1), atol=3e-4)  # float32 at 300 has steps of 3e-5


@pytest.fixture(scope="module")
def trained(tmp_path_factory, blobs):
    """A request of three tenths own and seven tenths extra images, and the run folder."""
    folder = tmp_path_factory.mktemp("extra")
    other = load_dataset(blobs, folder)
    images = (255 - other.train.pixels.numpy()).transpose(0, 2, 3, 1)
    name = saved(folder, images, other.train.labels.numpy())
    protocol = {"epochs": 1, "batch_size": 20, "extra_share": 0.7, "learning_rate": 0.01}
    request = TrainingRequest("st", blobs, "cnn-small", protocol=protocol, extra=name, folder=folder / "run")
    return request, train(request, quiet=True)


def test_a_training_records_its_extra_images_and_what_shows_it_says_so(trained):
    request, folder = trained
    config = load_checkpoint(folder).config
    expected = {
        "name": request.extra,
        "size": 96,
        "digest": read_extra(request.extra, load_dataset(request.dataset, folder)).digest(),
        "test_duplicates": 0,
        "test_digest": load_dataset(request.dataset, folder).test.digest(),
    }
    assert config["dataset"]["extra"] == expected
    earlier = {key: value for key, value in expected.items() if not key.startswith("test_")}
    assert identity({**config, "dataset": {**config["dataset"], "extra": earlier}}) == identity(config)
    assert config["protocol"]["extra_share"] == 0.7
    run = {**from_checkpoint(folder, torch.device("cpu")).description, "dataset": request.dataset}
    given = with_run(example(), **run)
    plain = {key: value for key, value in run["training_data"].items() if key != "extra"}
    protocol = {key: value for key, value in run["protocol"].items() if key != "extra_share"}
    notes = dict(training_notes(["A", "B"], [given, with_run(given, training_data=plain, protocol=protocol)]))
    assert "Training differs in extra images: 96 of npz:extra.npz for A; none for B" in notes
    assert "Training differs in extra_share: 0.7 for A; 0.0 for B" in notes
    assert len(notes) == 2
    command = commands(given)[0]
    assert " --extra npz:extra.npz " in command and " --extra-share 0.7 " in command


def test_other_extra_images_are_another_run(trained):
    request, _ = trained
    plain = {**request.protocol, "extra_share": 0}
    with pytest.raises(BenchError, match=r"holds another run \(different dataset, protocol\)"):
        train(TrainingRequest(**{**vars(request), "extra": None, "protocol": plain}), quiet=True)


def test_a_sweep_takes_extra_images_and_knows_what_was_trained_on_them(bench, blobs, trained):
    name = trained[0].extra
    arguments = ["sweep", "--defenses", "st", "--dataset", blobs, "--backbone", "cnn-small", "--suite", "clean"]
    arguments += ["--epochs", 1, "--limit", 20]
    extra = ["--extra", name, "--extra-share", 0.5]
    code, output = bench(*arguments, *extra, "--dry-run")
    assert code == 0 and f"--extra {name}" in output and "--extra-share 0.5" in output
    assert bench(*arguments, *extra)[0] == bench(*arguments, *extra)[0] == 0
    code, output = bench(*arguments)
    assert code == 2 and "holds another run (different dataset, protocol)" in output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--extra-share", 0.7], "extra_share 0.7 is of no images: give them, as --extra npz:PATH"),
        (["--extra", "npz:more.npz"], "extra_share 0.0 of a batch of 128 is no image"),
        (["--extra", "npz:more.npz", "--extra-share", 0.001], "extra_share 0.001 of a batch of 128 is no image"),
        (["--extra", "npz:more.npz", "--extra-share", 1], "extra_share=1.0 is out of range"),
    ],
)
def test_a_share_and_images_belong_together(bench, blobs, options, words):
    code, output = bench("train", "--defense", "st", "--dataset", blobs, *options)
    assert code == 2
    assert words in output


def drawn(monkeypatch):
    """The pairs by space of every sheet that is drawn from now on."""
    sheets, draw = [], nearest_sheet.nearest_sheet
    monkeypatch.setattr(nearest_sheet, "nearest_sheet", lambda spaces: sheets.append(spaces) or draw(spaces))
    return sheets


def test_the_command_says_how_near_they_are_and_draws_pairs(bench, blobs, trained, tmp_path, monkeypatch):
    (request, folder), sheets = trained, drawn(monkeypatch)
    given = ("data", "nearest", request.extra, "--dataset", blobs, "--count", 2)
    # Of every class its share: rows among the 20 are not those of the 60.
    code, output = bench(*given, "--limit", 20, "--features", folder, "--out", "near")
    assert code == 0, output
    dataset = load_dataset(blobs, tmp_path)
    lines = output.splitlines()
    assert lines[0].endswith("96 images, none of which is one of the 60 test images of " + blobs + ".")
    assert lines[5:] == ["near.png", "near.svg"]
    model = load_checkpoint(folder).build()
    points = {"pixels": lambda images: images.flatten(1), "features": model.features}
    test, extra = dataset.test.take(20), read_extra(request.extra, dataset)
    for (space, points_of), two in zip(points.items(), (lines[1:3], lines[3:5]), strict=True):
        with torch.no_grad():
            places = [points_of(split.images(slice(None))).double() for split in (test, extra, dataset.train)]
        for name, line, other in zip(("extra", "training"), two, places[1:], strict=True):
            told, numbers = line.split(f"{name} image, by {space}")
            assert told == "distance to the nearest "
            found = np.percentile(torch.cdist(places[0], other).amin(1), (0, 1, 50))
            assert [float(number) for number in numbers.split()[2::3]] == pytest.approx(list(found), rel=0.006)
        pairs = sheets[0][space]
        nearest_two = torch.cdist(*places[:2]).amin(1).sort().values[:2].tolist()
        assert [pair.distance for pair in pairs] == pytest.approx(nearest_two, rel=1e-3)
        for pair in pairs:
            with torch.no_grad():
                ends = [points_of(torch.from_numpy(image)[None]) for image in (pair.test, pair.extra)]
            assert float((ends[0] - ends[1]).norm()) == pytest.approx(pair.distance, rel=1e-3)
    code, output = bench(*given)
    assert code == 2 and "Add --out" in output
    code, output = bench(*given[:-2])
    assert code == 0 and len(output.splitlines()) == 3


def test_features_that_have_no_distances_are_refused(bench, blobs, trained, tmp_path):
    request, folder = trained
    given = ("data", "nearest", request.extra, "--dataset", blobs)
    checkpoint = load_checkpoint(folder)
    weights = {name: torch.full_like(tensor, torch.nan) for name, tensor in checkpoint.weights.items()}
    save_checkpoint(Checkpoint(checkpoint.config, weights), tmp_path / "bad")
    code, output = bench(*given, "--features", "bad")
    assert code == 2 and "bad returned features that are not finite" in output
    about = {**checkpoint.config["dataset"], "image_shape": [3, 8, 8]}
    save_checkpoint(Checkpoint({**checkpoint.config, "dataset": about}, checkpoint.weights), tmp_path / "other")
    code, output = bench(*given, "--features", "other")
    assert code == 2 and f"other is a model for images of (3, 8, 8); {blobs} has images of (1, 8, 8)" in output


def test_a_command_writes_the_file_without_test_images(bench, blobs, tmp_path):
    dataset = load_dataset(blobs, tmp_path)
    images = torch.cat([dataset.train.pixels[:4], dataset.test.pixels[8:9]]).permute(0, 2, 3, 1).numpy()
    name = saved(tmp_path, images, np.zeros(5, dtype=int))
    given = ("--defense", "st", "--dataset", blobs, "--extra-share", 0.5)
    code, output = bench("train", *given, "--extra", name)
    assert code == 2 and "image 4 is test image 8): " in output and not (tmp_path / "runs").exists()
    code, output = bench("data", "exclude", name, "--dataset", blobs, "--out", "kept.npz")
    assert (code, output) == (0, f"kept.npz: 4 images, without 1 that are test images of {blobs}\n")
    code, output = bench("data", "nearest", "npz:kept.npz", "--dataset", blobs)
    assert code == 0 and "by training" not in output and "npz:kept.npz: 4 images, none" in output
