"""Crops, flips, cutout and CutMix against every outcome there is, image by image; how labels and views reach a step."""

import hashlib
import itertools
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torchvision.transforms import functional as reference

from bench.catalogue import plugins as registry
from bench.catalogue.plugins import find, names
from bench.data.augmentations import draw_placement
from bench.errors import BenchError
from bench.interfaces import Defense
from bench.models.checkpoints import load_checkpoint
from bench.system.files import content_digest
from bench.training.averages import Averages
from bench.training.request import TrainingRequest, dataset_and_protocol
from bench.training.train import prepare_run, train
from tests import ROOT
from tests.defenses.test_every_defense import batch, build, context_for


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def crop_and_flip(images, padding, flip, source):
    return draw_placement(len(images), padding, flip, source).place(images)


def every_outcome(image, padding, flip):
    """(top, left, mirrored) to what torchvision makes of one image."""
    padded = reference.pad(image, padding)
    height, width = image.shape[1:]
    outcomes = {}
    offsets = range(2 * padding + 1)
    for top, left, mirrored in itertools.product(offsets, offsets, (False, True) if flip else (False,)):
        crop = reference.crop(padded, top, left, height, width)
        outcomes[top, left, mirrored] = reference.hflip(crop) if mirrored else crop
    return outcomes


def outcome_of(augmented, image, padding, flip):
    matches = [key for key, crop in every_outcome(image, padding, flip).items() if torch.equal(crop, augmented)]
    assert len(matches) == 1
    return matches[0]


@pytest.mark.parametrize(("padding", "flip"), [(4, True), (4, False), (2, True), (0, True)])
def test_every_image_is_a_crop_and_flip_of_itself(padding, flip):
    images = torch.rand(24, 3, 6, 9, generator=generator(1))
    augmented = crop_and_flip(images, padding, flip, generator())
    outcomes = {outcome_of(*pair, padding, flip) for pair in zip(augmented, images, strict=True)}
    assert len(outcomes) >= (10 if padding else 2)


def test_offsets_and_flips_are_uniform_and_independent():
    image = torch.arange(1.0, 10.0).view(1, 3, 3)
    augmented = crop_and_flip(image.expand(9000, 1, 3, 3), 1, True, generator())
    counts = [int((augmented == crop).all((1, 2, 3)).sum()) for crop in every_outcome(image, 1, True).values()]
    assert len(counts) == 18
    assert sum(counts) == 9000
    assert stats.chisquare(counts).pvalue > 0.01


def test_nothing_asked_nothing_done():
    images = torch.rand(5, 3, 4, 4)
    source = generator()
    before = source.get_state()
    assert torch.equal(crop_and_flip(images, 0, False, source), images)
    assert torch.equal(source.get_state(), before)


def test_the_generator_decides_and_the_images_stay():
    images = torch.rand(16, 1, 8, 8)
    original = images.clone()
    first, again, other = (crop_and_flip(images, 2, True, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, original)


# ------------------------------------------------------------------------------------ cutout and CutMix


def interval(size, centre, length):
    return max(centre - length // 2, 0), min(centre + length // 2, size)


def constant_images(count, height, width):
    """Image i is i + 1 all over."""
    return torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(count, 2, height, width).contiguous()


def box_of(changed):
    """The rows and columns of a mask, which is a box."""
    rows, columns = torch.nonzero(changed.any(1)).flatten(), torch.nonzero(changed.any(0)).flatten()
    if len(rows) == 0:
        return (0, 0), (0, 0)
    box = (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)
    assert int(changed.sum()) == (box[0][1] - box[0][0]) * (box[1][1] - box[1][0])
    return box


def test_cutout_blackens_a_square_around_any_pixel():
    count, height, width = 4800, 6, 8
    images, labels = constant_images(count, height, width), torch.arange(count) % 3
    original = images.clone()
    changed, same = find("augmentation", "cutout")().apply(images, labels, 3, generator())
    assert torch.equal(images, original) and torch.equal(same, labels)
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert bool(((changed == images) | (changed == 0)).all())
    expected = {}
    for row, column in itertools.product(range(height), range(width)):
        box = interval(height, row, 3), interval(width, column, 3)
        expected[box] = expected.get(box, 0) + count / (height * width)
    found = dict.fromkeys(expected, 0)
    for image in changed[:, 0]:
        found[box_of(image == 0)] += 1
    assert stats.chisquare(list(found.values()), list(expected.values())).pvalue > 0.01


def cut_length(size, centre):
    """(length, probability) of one side of a CutMix box, for each whole length before it is cut at the border."""
    for length in range(size):
        low, high = interval(size, centre, length)
        yield high - low, ((length + 1) ** 2 - length**2) / size**2


def test_cutmix_mixes_labels_as_it_mixes_pixels():
    count, size, classes = 4000, 8, 5
    images, labels = constant_images(count, size, size), torch.arange(count) % classes
    mixed, targets = find("augmentation", "cutmix")().apply(images, labels, classes, generator())
    own = torch.arange(1, count + 1)
    sources, shares = own.clone(), torch.zeros(count)
    for number, image in enumerate(mixed[:, 0]):
        foreign = image != own[number]
        if foreign.any():
            box_of(foreign)
            assert len(image[foreign].unique()) == 1
            sources[number], shares[number] = int(image[foreign][0]), float(foreign.float().mean())
    assert torch.equal(mixed[:, 0], mixed[:, 1])
    expected = functional.one_hot(labels, classes) * (1 - shares[:, None])
    expected += functional.one_hot(labels[sources - 1], classes) * shares[:, None]
    torch.testing.assert_close(targets, expected)
    taken = sources[shares > 0]
    assert len(taken.unique()) == len(taken) > count / 2
    # The mean area, over every centre and every side there is; 4000 shares have a mean that is normal.
    areas = []
    for row, column in itertools.product(range(size), repeat=2):
        sides = zip(cut_length(size, row), cut_length(size, column), strict=True)
        areas += [high * wide * chance / size**4 for (high, chance), (wide, _) in sides]
    assert abs(float(shares.mean()) - sum(areas)) < 4 * float(shares.std()) / count**0.5


def test_none_and_crop_flip_change_nothing_more():
    images, labels, source = torch.rand(4, 1, 5, 5), torch.arange(4), generator()
    before = source.get_state()
    for name in ("none", "crop-flip"):
        same, kept = find("augmentation", name)().apply(images, labels, 4, source)
        assert torch.equal(same, images) and torch.equal(kept, labels)
    assert torch.equal(source.get_state(), before)


# ------------------------------------------------------------------------------------------ in a training


def prepared(blobs, defense="st", **protocol):
    protocol = {"batch_size": 32, "epochs": 4, "learning_rate": 0.01, **protocol}
    return prepare_run(TrainingRequest(defense, blobs, "cnn-small", protocol=protocol), quiet=True, trial=True)


def test_mixed_labels_reach_the_loss_as_they_are(blobs):
    run = prepared(blobs, augmentation="cutmix")
    # What a trial of the labels did, it did to a copy.
    assert content_digest(run.state()) == content_digest(prepared(blobs).state())
    context = run.context(0, Averages())
    run.model.train()
    for images, targets in run.batches(context.generator):
        assert targets.shape == (32, 3) and bool((targets.amax(1) < 1).any())
        torch.testing.assert_close(targets.sum(1), torch.ones(32))
        expected = -(targets * run.model(images).log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(run.step(images, targets, context)["clean"], expected)


class Uses(TorchFunctionMode):
    """The torch functions that are given the labels themselves."""

    def __init__(self, labels):
        super().__init__()
        self.labels, self.seen = labels, set()

    def __torch_function__(self, function, types, arguments=(), options=None):
        # Type checks read their shape and dtype.
        if any(given is self.labels for given in arguments) and function.__name__ != "__get__":
            self.seen.add(function)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("defense", names("defense"))
def test_defenses_that_need_class_indices_are_refused_mixed_labels(blobs, defense):
    """Those that know labels through cross-entropy alone are not: it takes distributions as well.

    So do the steps at which images break, of which the largest class counts.
    """
    owner, model = build(defense)
    images, labels = batch()
    with Uses(labels) as uses:
        owner.losses(model, images, labels, context_for(owner, model))
    if uses.seen == {functional.cross_entropy} or defense == "gairat":
        assert prepared(blobs, defense, augmentation="cutmix").augmentation.soft_labels
        return
    with pytest.raises(BenchError) as caught:
        prepared(blobs, defense, augmentation="cutmix")
    assert str(caught.value).startswith(f"augmentation 'cutmix' mixes labels, and {defense} needs class indices (")
    assert "crop-flip" in str(caught.value) and "\n" not in str(caught.value)


class FirstClass(Defense):
    """Takes distributions for labels, and reads the first class out of them."""

    paper = "none"

    def losses(self, model, images, labels, context):
        return {"first": model(images)[:, 0].sum() * labels.flatten()[0]}


class Pairs(Defense):
    """Two views."""

    paper, views = "none", 2

    def losses(self, model, images, labels, context):
        logits = model(images)
        return {
            "loss": functional.cross_entropy(logits, labels),
            "gap": (logits.chunk(2)[0] - logits.chunk(2)[1]).norm(),
        }


def test_a_defense_that_misreads_distributions_is_refused(blobs, monkeypatch):
    monkeypatch.setitem(registry.added, ("defense", "first-class"), FirstClass)
    with pytest.raises(BenchError, match="its loss is another one with distributions"):
        prepared(blobs, "first-class", augmentation="cutmix")


@pytest.mark.parametrize("augmentation", ["crop-flip", "cutmix"])
def test_a_defense_may_ask_for_two_views(blobs, monkeypatch, augmentation):
    monkeypatch.setitem(registry.added, ("defense", "pairs"), Pairs)
    run = prepared(blobs, "pairs", augmentation=augmentation, crop_padding=2)
    context, plain = run.context(0, Averages()), prepared(blobs, crop_padding=0)
    singles = plain.batches(plain.context(0, Averages()).generator)
    for (images, labels), (plain_images, expected) in zip(run.batches(context.generator), singles, strict=True):
        first, second = images.chunk(2)
        assert len(first) == len(second) == len(expected)
        assert not torch.equal(first, second)
        if augmentation == "crop-flip":
            assert torch.equal(labels, expected.repeat(2))
            for view, image in zip(images, plain_images.repeat(2, 1, 1, 1), strict=True):
                assert any(torch.equal(view, crop) for crop in every_outcome(image, 2, False).values())
        assert {*run.step(images, labels, context)} == {"loss", "gap"}
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BenchError, match="cannot be trained by 2 processes: the views of an image belong together"):
        prepared(blobs, "pairs")


def test_the_record_and_the_run_folder_know_the_augmentation(blobs, tmp_path):
    def request(**protocol):
        protocol = {"epochs": 1, "learning_rate": 0.01, **protocol}
        return TrainingRequest("st", blobs, "cnn-small", protocol=protocol, folder=tmp_path / "run")

    assert prepared(blobs).config["protocol"]["augmentation"] == "crop-flip"
    folder = train(request(augmentation="cutout"), quiet=True)
    assert load_checkpoint(folder).config["protocol"]["augmentation"] == "cutout"
    with pytest.raises(BenchError, match=r"holds another run \(different protocol\)"):
        train(request(), quiet=True)
    protocol = dataset_and_protocol(request(augmentation="none"))[1]
    assert (protocol.crop_padding, protocol.flip) == (0, False)
    with pytest.raises(BenchError, match="augmentation=none has no crops and flips: leave out crop_padding and flip"):
        dataset_and_protocol(request(augmentation="none", crop_padding=4))
    with pytest.raises(BenchError, match="unknown augmentation 'cutmx'"):
        dataset_and_protocol(request(augmentation="cutmx"))


def test_a_file_is_an_augmentation_too(bench, blobs):
    file = ROOT / "examples" / "mixup.py"
    arguments = ["train", "--defense", "st", "--dataset", blobs, "--backbone", "cnn-small", "--epochs", 1]
    code, output = bench(*arguments, "--augmentation", file, "--out", "run")
    assert code == 0, output
    config = load_checkpoint(Path("run")).config
    assert config["protocol"]["augmentation"] == "mixup"
    assert config["augmentation_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
