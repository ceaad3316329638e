"""Datasets read from small files in the published formats, written here; and the real ones where they are at hand."""

import dataclasses
import functools
import gzip
import hashlib
import os
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision import datasets as archives
from torchvision.transforms import functional as reference

from bench.catalogue.names import DATASETS
from bench.data.archives import ARCHIVES
from bench.data.datasets import describe, fetch_dataset, load_dataset
from bench.data.splits import Split
from tests.support.fake_cifar import write_archive
from tests.support.refusals import refusal

BUDGETS = {"linf": "8/255", "l2": "128/255", "l1": "2000/255"}


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(root, monkeypatch, reader, labels_key, classes):
    """Two images per file; what they hold, by part."""

    def entry(file, number):
        return {"data": pixels(2, 3072, seed=len(file) + number), labels_key: [number, classes - 1]}

    write_archive(root, monkeypatch, reader, classes, entry)
    expected = {}
    for part in ("train", "test"):
        entries = [entry(file, number) for number, (file, _) in enumerate(getattr(reader, f"{part}_list"))]
        images = np.concatenate([one["data"] for one in entries]).reshape(-1, 3, 32, 32)
        expected[part] = images, [label for one in entries for label in one[labels_key]]
    return expected


def cifar10(root, monkeypatch):
    return write_cifar(root, monkeypatch, archives.CIFAR10, "labels", 10)


def cifar100(root, monkeypatch):
    return write_cifar(root, monkeypatch, archives.CIFAR100, "fine_labels", 100)


def idx(array):
    """The format of MNIST's files: type and rank, the lengths, the bytes."""
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + lengths + array.tobytes()


def mnist_contents():
    return {
        "train": (pixels(4, 28, 28), np.array([7, 0, 9, 1], dtype=np.uint8)),
        "t10k": (pixels(3, 28, 28, seed=1), np.array([2, 2, 8], dtype=np.uint8)),
    }


def mnist(root, monkeypatch):
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    expected = {}
    for stem, (images, labels) in mnist_contents().items():
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(idx(labels))
        expected["test" if stem == "t10k" else stem] = images[:, None], labels
    return expected


def svhn(root, monkeypatch):
    """Its files store digit 0 as label 10 and images as (height, width, channel, count)."""
    root.mkdir(exist_ok=True)
    table, expected = dict(archives.SVHN.split_list), {}
    for part, labels in (("train", [10, 3, 9, 1]), ("test", [4, 10])):
        images = pixels(len(labels), 3, 32, 32, seed=len(labels))
        path = root / f"{part}_32x32.mat"
        column = np.array(labels, dtype=np.uint8)[:, None]
        scipy.io.savemat(path, {"X": images.transpose(2, 3, 1, 0), "y": column})
        table[part] = ["", path.name, md5(path)]
        expected[part] = images, [label % 10 for label in labels]
    monkeypatch.setattr(archives.SVHN, "split_list", table)
    return expected


WRITERS = {"cifar10": cifar10, "cifar100": cifar100, "mnist": mnist, "svhn": svhn}
FILES = {
    "cifar10": (
        "cifar-10-batches-py",
        [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"],
    ),
    "cifar100": ("cifar-100-python", ["train", "test", "meta"]),
    "mnist": (
        "MNIST/raw",
        [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")],
    ),
    "svhn": ("", ["train_32x32.mat", "test_32x32.mat"]),
}


# ---------------------------------------------------------------------------------------------- splits


def test_images_are_what_to_tensor_makes_of_them():
    every_value = np.arange(256, dtype=np.uint8).reshape(16, 16)
    split = Split(torch.from_numpy(every_value)[None, None], torch.zeros(1, dtype=torch.int64))
    expected = reference.to_tensor(Image.fromarray(every_value))
    assert torch.equal(split.images(slice(None))[0], expected)
    assert split.images(slice(None)).dtype == torch.float32


def test_images_follow_the_indices_and_the_levels():
    values = torch.arange(6, dtype=torch.uint8).view(3, 1, 1, 2)
    split = Split(values, torch.tensor([0, 1, 2]), levels=8)
    assert split.images(torch.tensor([2, 0])).flatten().tolist() == [4 / 8, 5 / 8, 0, 1 / 8]
    assert split.images(slice(1, 2)).flatten().tolist() == [2 / 8, 3 / 8]


def test_take_keeps_the_first_ones():
    split = Split(torch.from_numpy(pixels(5, 1, 2, 2)), torch.arange(5))
    assert len(split) == 5
    taken = split.take(3)
    assert len(taken) == 3
    assert taken.labels.tolist() == [0, 1, 2]
    assert torch.equal(taken.pixels, split.pixels[:3])
    assert torch.equal(split.to("cpu").take(5).pixels, split.pixels)


@pytest.mark.parametrize("limit", [0, -1, 6])
def test_take_refuses_what_is_not_there(limit):
    split = Split(torch.from_numpy(pixels(5, 1, 2, 2)), torch.arange(5))
    refusal(lambda: split.take(limit), f"limit {limit} does not fit a split of 5 examples", "Give 1 to 5")


def test_digest_is_the_sha256_of_what_it_names():
    images = pixels(3, 2, 2, 1)
    split = Split(torch.from_numpy(images), torch.tensor([2, 0, 1]), levels=16)
    labels = bytes([2, *7 * [0], 0, *7 * [0], 1, *7 * [0]])
    assert split.digest() == hashlib.sha256(b"(3, 2, 2, 1) 16" + images.tobytes() + labels).hexdigest()


def test_digest_tells_examples_orders_and_levels_apart():
    split = Split(torch.from_numpy(pixels(4, 1, 2, 2)), torch.tensor([0, 1, 2, 3]))
    order = torch.tensor([1, 0, 2, 3])
    others = [
        Split(split.pixels[order], split.labels[order]),
        Split(split.pixels, split.labels[order]),
        Split(split.pixels[order], split.labels),
        Split(split.pixels.view(4, 2, 2, 1), split.labels),
        dataclasses.replace(split, levels=16),
        split.take(3),
    ]
    assert len({other.digest() for other in [split, *others]}) == 7
    strided = split.pixels.contiguous(memory_format=torch.channels_last)
    assert Split(strided, split.labels.clone()).digest() == split.digest()


# -------------------------------------------------------------------------------------------- protocol


def test_names():
    assert tuple(sorted([*ARCHIVES, "digits"])) == DATASETS


def test_digits(tmp_path):
    dataset = load_dataset("digits", tmp_path)
    assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (1297, 500, 10)
    assert dataset.image_shape == (1, 8, 8)
    assert dataset.train.levels == dataset.test.levels == int(dataset.train.pixels.max()) == 16
    counts = torch.bincount(torch.cat([dataset.train.labels, dataset.test.labels]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as scikit-learn documents them
    shares = torch.bincount(dataset.test.labels) / counts
    assert float((shares - 500 / 1797).abs().max()) < 1 / 174
    assert dataset.test.digest() == "c1478b3115cba5cac9b5dc61de4e7d1a3663de1f60140510db586d3291b450b9"


def test_digits_are_those_of_scikit_learn_and_its_split(tmp_path):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    dataset, theirs = load_dataset("digits", tmp_path), load_digits()
    parts = train_test_split(theirs.images, theirs.target, test_size=500, random_state=0, stratify=theirs.target)
    ours = [dataset.train.pixels[:, 0], dataset.test.pixels[:, 0], dataset.train.labels, dataset.test.labels]
    for mine, part in zip(ours, parts, strict=True):
        np.testing.assert_array_equal(mine, part)


def test_budgets_of_digits_are_cifars_shares_of_the_linf_ball(tmp_path):
    """The ball's corner lies at epsilon * sqrt(d) in l2 and at epsilon * d in l1."""
    epsilons = load_dataset("digits", tmp_path).epsilons
    assert epsilons == {"linf": "0.15", "l2": "0.35", "l1": "0.8"}
    share_l2, share_l1 = 128 / 255 / (8 / 255 * 3072**0.5), 2000 / 255 / (8 / 255 * 3072)
    assert round(share_l2 * 0.15 * 64**0.5, 2) == 0.35
    assert round(share_l1 * 0.15 * 64, 1) == 0.8


@pytest.mark.parametrize(
    ("name", "epsilons", "padding", "flip"),
    [
        ("cifar10", BUDGETS, 4, True),
        ("cifar100", BUDGETS, 4, True),
        ("svhn", BUDGETS, 4, False),
        ("mnist", {"linf": "0.3", "l2": "2", "l1": "10"}, 0, False),
    ],
)
def test_archives_are_read_as_written(name, epsilons, padding, flip, tmp_path, monkeypatch):
    expected = WRITERS[name](tmp_path, monkeypatch)
    dataset = load_dataset(name, tmp_path)
    for part, (images, labels) in expected.items():
        split = getattr(dataset, part)
        assert np.array_equal(split.pixels.numpy(), images)
        assert split.labels.tolist() == list(labels)
        assert split.pixels.is_contiguous() and split.levels == 255
    assert dataset.image_shape == expected["test"][0].shape[1:]
    assert (dataset.name, dataset.num_classes) == (name, 100 if name == "cifar100" else 10)
    assert (dataset.epsilons, dataset.crop_padding, dataset.flip) == (epsilons, padding, flip)
    assert ("no flips" in dataset.flip_note or "nor flips" in dataset.flip_note) is not flip
    counts = f"{len(dataset.train)} training and {len(dataset.test)} test images"
    shape = "1x28x28" if name == "mnist" else "3x32x32"
    assert describe(name, tmp_path) == f"{name} is present: {counts} of {shape}, {dataset.num_classes} classes."


@pytest.mark.parametrize("name", FILES)
def test_missing_files_are_named(name, tmp_path, monkeypatch):
    folder, files = FILES[name]
    fetch = f"Run: bench data fetch {name} --data {tmp_path}"
    everything = f"{name} is missing {', '.join(files)} in {tmp_path / folder}. {fetch}"
    assert refusal(lambda: load_dataset(name, tmp_path)) == describe(name, tmp_path) == everything
    WRITERS[name](tmp_path, monkeypatch)
    (tmp_path / folder / files[1]).unlink()
    one = f"{name} is missing {files[1]} in {tmp_path / folder}. {fetch}"
    assert refusal(lambda: load_dataset(name, tmp_path)) == describe(name, tmp_path) == one


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_refused(name, tmp_path, monkeypatch):
    WRITERS[name](tmp_path, monkeypatch)
    folder, files = FILES[name]
    path = tmp_path / folder / files[0]
    path.write_bytes(path.read_bytes()[:-1])
    message = refusal(lambda: load_dataset(name, tmp_path))
    assert message.startswith(
        f"{name} is damaged in {tmp_path / folder}: its files are unreadable or not the published ones."
    )
    assert message.endswith(f"then run: bench data fetch {name} --data {tmp_path}")
    assert describe(name, tmp_path) == message


@pytest.mark.parametrize("labels", [[1, 2, 3], [1, 2, 3, 10]])
def test_mnist_labels_that_do_not_fit_are_refused(labels, tmp_path, monkeypatch):
    mnist(tmp_path, monkeypatch)
    path = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    path.write_bytes(idx(np.array(labels, dtype=np.uint8)))
    assert refusal(lambda: load_dataset("mnist", tmp_path)).startswith("mnist is damaged")


@pytest.mark.parametrize("call", [load_dataset, fetch_dataset, describe])
@pytest.mark.parametrize("name", ["cifar", "npz"])
def test_unknown_names_are_answered_with_all(call, name, tmp_path):
    message = refusal(lambda: call(name, tmp_path))
    assert message.startswith(f"unknown dataset {name!r}.")
    own = "folder:PATH, hf:NAME, imagenet:PATH, mnist, npz:PATH, svhn, tinyimagenet:PATH"
    assert message.endswith(f"Choose from: cifar10, cifar100, digits, {own}.")


# ------------------------------------------------------------------------------------------- downloads


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder, and the address it is served at."""
    folder = tmp_path / "server"
    folder.mkdir()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(QuietHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def svhn_at(folder, address, monkeypatch):
    expected = svhn(folder, monkeypatch)
    table = {part: [address + file, file, checksum] for part, (_, file, checksum) in archives.SVHN.split_list.items()}
    monkeypatch.setattr(archives.SVHN, "split_list", table)
    return expected


def test_fetch_puts_the_files_where_load_looks(server, tmp_path, monkeypatch):
    folder, address = server
    expected = svhn_at(folder, address, monkeypatch)
    fetch_dataset("svhn", tmp_path / "data")
    dataset = load_dataset("svhn", tmp_path / "data")
    assert np.array_equal(dataset.train.pixels.numpy(), expected["train"][0])


def test_fetch_unpacks_mnist_and_fetches_once(server, tmp_path, monkeypatch):
    folder, address = server
    table = []
    for stem, contents in mnist_contents().items():
        for kind, array in zip(("images-idx3", "labels-idx1"), contents, strict=True):
            path = folder / f"{stem}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(idx(array)))
            table.append((path.name, md5(path)))
    monkeypatch.setattr(archives.MNIST, "resources", table)
    monkeypatch.setattr(archives.MNIST, "mirrors", [address])
    fetch_dataset("mnist", tmp_path)
    for path in folder.iterdir():
        path.unlink()
    fetch_dataset("mnist", tmp_path)
    assert load_dataset("mnist", tmp_path).test.labels.tolist() == [2, 2, 8]


@pytest.mark.parametrize("name", FILES)
def test_a_failed_download_says_what_to_put_where(name, tmp_path, monkeypatch):
    nowhere = (tmp_path / "nowhere").as_uri() + "/"
    monkeypatch.setattr(archives.CIFAR10, "url", nowhere + "cifar.tar.gz")
    monkeypatch.setattr(archives.CIFAR100, "url", nowhere + "cifar.tar.gz")
    monkeypatch.setattr(archives.MNIST, "mirrors", [nowhere])
    table = {part: [nowhere + file, file, checksum] for part, (_, file, checksum) in archives.SVHN.split_list.items()}
    monkeypatch.setattr(archives.SVHN, "split_list", table)
    message = refusal(lambda: fetch_dataset(name, tmp_path))
    folder, files = FILES[name]
    assert message.startswith(f"{name} could not be downloaded (")
    assert message.endswith(f"Put {', '.join(files)} in {tmp_path / folder} by hand.")


def test_a_damaged_download_is_refused(server, tmp_path, monkeypatch):
    svhn_at(*server, monkeypatch)
    (server[0] / "train_32x32.mat").write_bytes(b"<html>moved</html>")
    assert refusal(lambda: fetch_dataset("svhn", tmp_path / "data")).startswith("svhn could not be downloaded (")


def test_nothing_to_fetch(tmp_path):
    fetch_dataset("digits", tmp_path)
    assert list(tmp_path.iterdir()) == []
    message = refusal(lambda: fetch_dataset("npz:mine.npz", tmp_path))
    assert message == "npz:mine.npz is a file of your own: there is nothing to fetch. Put it at that path."


# ------------------------------------------------------------------------------------------- npz files


def good_arrays():
    return {
        "x_train": pixels(4, 6, 5, 3),
        "y_train": np.array([0, 1, 2, 1], dtype=np.int32),
        "x_test": pixels(2, 6, 5, 3, seed=1),
        "y_test": np.array([3, 0], dtype=np.uint8),
    }


def npz(tmp_path, **changes):
    arrays = {key: array for key, array in {**good_arrays(), **changes}.items() if array is not None}
    np.savez(tmp_path / "mine.npz", **arrays)
    return f"npz:{tmp_path / 'mine.npz'}"


def test_npz(tmp_path):
    name = npz(tmp_path)
    dataset = load_dataset(name, Path("unused"))
    arrays = good_arrays()
    assert (dataset.name, dataset.num_classes, dataset.image_shape) == (name, 4, (3, 6, 5))
    assert np.array_equal(dataset.train.pixels.numpy(), np.moveaxis(arrays["x_train"], 3, 1))
    assert dataset.train.labels.tolist() == [0, 1, 2, 1] and dataset.test.labels.tolist() == [3, 0]
    assert (dataset.epsilons, dataset.crop_padding, dataset.flip) == (BUDGETS, 4, False)
    assert describe(name, tmp_path) == f"{name} is present: 4 training and 2 test images of 3x6x5, 4 classes."


def test_npz_without_training_images(tmp_path):
    name = npz(tmp_path, x_train=None, y_train=None)
    dataset = load_dataset(name, tmp_path)
    assert (dataset.num_classes, dataset.image_shape) == (4, (3, 6, 5))
    assert (len(dataset.train), dataset.test.labels.tolist()) == (0, [3, 0])
    assert np.array_equal(dataset.test.pixels.numpy(), np.moveaxis(good_arrays()["x_test"], 3, 1))
    assert describe(name, tmp_path) == f"{name} is present: 0 training and 2 test images of 3x6x5, 4 classes."
    message = refusal(lambda: load_dataset(npz(tmp_path, x_train=None), tmp_path))
    assert message.endswith("mine.npz has no array x_train. It needs x_test, y_test, and to train x_train, y_train.")
    alone = npz(tmp_path, x_train=None, y_train=None, y_test=None)
    refusal(lambda: load_dataset(alone, tmp_path), "has no array y_test. It needs x_test, y_test, and to train x_train")
    name = npz(tmp_path, x_train=None, y_train=None, y_test=np.zeros(2, dtype=np.int64))
    assert "y_test in " in refusal(lambda: load_dataset(name, tmp_path))


def test_a_column_of_labels_is_a_list_of_them(tmp_path):
    column = {part: array[:, None] for part, array in good_arrays().items() if part in ("y_train", "y_test")}
    dataset = load_dataset(npz(tmp_path, **column), tmp_path)
    assert (dataset.train.labels.tolist(), dataset.test.labels.tolist()) == ([0, 1, 2, 1], [3, 0])
    (tmp_path / "one").mkdir()
    one = npz(tmp_path / "one", x_test=pixels(1, 6, 5, 3), y_test=np.array([[2]]))
    assert load_dataset(one, tmp_path).test.labels.tolist() == [2]


def test_npz_without_channels_is_grey(tmp_path):
    name = npz(tmp_path, x_train=pixels(4, 6, 5), x_test=pixels(2, 6, 5), y_train=np.array([0, 1, 1, 0], dtype=">i2"))
    dataset = load_dataset(name, tmp_path)
    assert dataset.image_shape == (1, 6, 5)
    assert np.array_equal(dataset.test.pixels.numpy(), pixels(2, 6, 5)[:, None])
    assert dataset.train.labels.tolist() == [0, 1, 1, 0]


FLOAT, LABELS = "is of type float64, ", "expected integer labels 0..K-1"
PIXELS, SHAPE = "expected uint8 pixels 0..255", "expected (count, height, width[, channel]), none of them 0"
ONE_HOT, RANGE = "look one-hot: write y_train.argmax(1)", "expected 0..K-1 for K classes, at most 32768"


@pytest.mark.parametrize(
    ("array", "value", "faults"),
    [
        ("x_train", pixels(4, 6, 5, 3) / 255, (FLOAT, PIXELS, "Write (255 * x_train).round().astype(numpy.uint8)")),
        ("x_train", pixels(4, 6, 5, 3) * 1.0, (FLOAT, PIXELS, "Write x_train.astype(numpy.uint8)")),
        ("x_train", pixels(4, 6, 5, 3) * 2.0, (FLOAT, PIXELS)),
        ("x_train", np.full((4, 6, 5, 3), np.nan), (FLOAT, PIXELS)),
        ("x_test", np.ones((2, 6, 5, 3), int), ("of type int64, ", PIXELS, "Write x_test.astype(numpy.uint8)")),
        ("x_test", pixels(2, 30), ("has shape (2, 30)", SHAPE)),
        ("x_train", pixels(0, 6, 5, 3), ("has shape (0, 6, 5, 3)", SHAPE)),
        ("x_train", pixels(4, 3, 6, 5), ("(4, 3, 6, 5), expected channels last: transpose(0, 2, 3, 1) it",)),
        ("x_test", pixels(2, 5, 5, 3), ("holds images of (5, 5, 3), expected (6, 5, 3) as in x_train",)),
        ("y_train", np.zeros(4), (FLOAT, LABELS, "Write y_train.astype(int)")),
        ("y_train", np.full(4, 0.5), (FLOAT, LABELS)),
        ("y_train", np.full(4, np.inf), (FLOAT, LABELS)),
        ("y_train", np.zeros(4, dtype=bool), ("is of type bool, ", LABELS, "Write y_train.astype(int)")),
        ("y_train", np.array(["a"] * 4), ("is of type <U1, ", LABELS)),
        ("y_train", np.eye(4, dtype=np.int64), ("has shape (4, 4), expected one label per image: (4,)", ONE_HOT)),
        ("y_train", np.eye(4), (FLOAT, LABELS, ONE_HOT)),
        ("y_test", np.zeros((2, 2), dtype=int), ("has shape (2, 2), expected one label per image: (2,)",)),
        ("y_test", np.array([1, 0, 1]), ("has shape (3,), expected one label per image: (2,)",)),
        ("y_test", np.array([-1, 0]), ("holds labels -1 to 0, ", RANGE)),
        ("y_test", np.array([0, 2**15]), ("holds labels 0 to 32768, ", RANGE)),
        ("y_test", np.array([None, 1]), ("cannot be read as an archive of plain arrays", "Write it with numpy.savez")),
        ("y_test", None, ("has no array y_test", "It needs x_test, y_test, and to train x_train, y_train")),
    ],
)
def test_npz_faults_are_named(array, value, faults, tmp_path):
    name = npz(tmp_path, **{array: value})
    where, line = tmp_path / "mine.npz", refusal(lambda: load_dataset(name, tmp_path), *faults)
    of_the_file = faults[0].startswith(("cannot", "has no"))
    assert line.startswith(f"{where} " if of_the_file else f"{array} in {where} ")
    assert describe(name, tmp_path) == line


def test_npz_of_one_class_is_refused(tmp_path):
    name = npz(tmp_path, y_train=np.zeros(4, dtype=np.int64), y_test=np.zeros(2, dtype=np.int64))
    message = refusal(lambda: load_dataset(name, tmp_path))
    assert message.endswith("holds the label 0 alone, expected labels of two classes or more.")


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut off", "npy", "cut", "flipped"])
def test_files_that_are_no_npz_are_refused(content, tmp_path):
    name = npz(tmp_path)
    path = tmp_path / "mine.npz"
    whole = path.read_bytes()
    if content == "npy":
        with path.open("wb") as file:
            np.save(file, pixels(3, 3))
    else:
        middle = whole.index(good_arrays()["x_train"].tobytes())
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        path.write_bytes({"cut": whole[: len(whole) // 2], "flipped": flipped}.get(content, content))
    message = refusal(lambda: load_dataset(name, tmp_path))
    assert message.startswith(f"{path} ")
    assert message.endswith("x_test, y_test, and to train x_train, y_train.")


def test_a_missing_npz_is_named(tmp_path):
    told = (f"there is no file {tmp_path}/none.npz", "Write it with numpy.savez: x_test, y_test")
    refusal(lambda: load_dataset(f"npz:{tmp_path}/none.npz", tmp_path), *told)


# ------------------------------------------------------------------------------------------ real files


@pytest.mark.parametrize(
    ("name", "first_test_labels", "train_mean"),
    [
        ("cifar10", [3, 8, 8, 0, 6], [0.4914, 0.4822, 0.4465]),
        ("mnist", [7, 2, 1, 0, 4], [0.1307]),
    ],
)
def test_the_real_files(name, first_test_labels, train_mean):
    """Published counts and pixel means."""
    if "BENCH_DATA" not in os.environ:
        pytest.skip("set BENCH_DATA to a data folder with the real files")
    dataset = load_dataset(name, Path(os.environ["BENCH_DATA"]))
    assert len(dataset.test) == 10_000
    assert len(dataset.train) == (60_000 if name == "mnist" else 50_000)
    assert dataset.test.labels[:5].tolist() == first_test_labels
    channels = dataset.train.pixels.transpose(0, 1).flatten(1)
    means = [float(channel.sum()) / channel.numel() / 255 for channel in channels]
    assert means == pytest.approx(train_mean, abs=5e-5)
