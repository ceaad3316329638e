"""Images on disk: how they are listed, read, prepared, named when they are broken, and evaluated without the whole set.

Sizes after a resize are worked out by hand, and pixels are those of images of one colour, or of single pixels.
"""

import shutil
import tracemalloc
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from bench.catalogue.names import short_name
from bench.catalogue.suites import AttackCell, Suite
from bench.data import image_folders, stored_images
from bench.data.datasets import dataset_protocol, load_dataset
from bench.data.splits import Split
from bench.data.stored_images import ImageFiles, Preprocessing, StoredImages
from bench.engine.adversarials import write_adversarials
from bench.engine.memory import room_for
from bench.engine.run import run_suite
from bench.engine.target import Target
from bench.interfaces import ThreatModel
from bench.leaderboard.render.commands import commands
from bench.models.checkpoints import load_checkpoint
from bench.results.file import read_result
from bench.system.blocks import PartStore
from tests.support.command import refused
from tests.support.refusals import refusal

CLASSES = ("cat", "dog", "owl")


def picture(path, colour=0, size=(8, 8)):
    """One colour, but for a pixel at the top left that says which file it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (colour, 10, 20))
    image.putpixel((0, 0), (int(path.stem), 1, 2))
    image.save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Four images of each class to test on, two to train on; and what is not taken for an image."""
    for label, name in enumerate(CLASSES):
        for number in range(4):
            picture(tmp_path / "set" / "test" / name / f"{number}.png", 50 * label)
        for number in (4, 5):
            picture(tmp_path / "set" / "train" / name / f"{number}.png", 50 * label)
    (tmp_path / "set" / "test" / "cat" / "notes.txt").write_text("none")
    (tmp_path / "set" / "test" / ".hidden").mkdir()
    return tmp_path / "set"


# ----------------------------------------------------------------------------------------------------- reading


def test_a_folder_of_classes_is_read_when_it_is_asked_for(folder):
    dataset = load_dataset(f"folder:{folder}", folder)
    assert (dataset.num_classes, dataset.class_names, dataset.image_shape) == (3, CLASSES, (3, 8, 8))
    assert (len(dataset.test), len(dataset.train), dataset.preprocessing) == (12, 6, "none")
    assert dataset.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    images = dataset.test.images(torch.tensor([9, 2]))
    assert (images[:, :, 0, 0] * 255).round().tolist() == [[1, 1, 2], [2, 1, 2]]
    assert (images[:, :, 3, 4] * 255).round().tolist() == [[100, 10, 20], [0, 10, 20]]
    assert not isinstance(dataset.test.pixels, torch.Tensor)
    assert dataset.test.pixels.shape == (12, 3, 8, 8)


def test_parts_and_digests_are_those_of_the_same_images_in_memory(folder):
    test = load_dataset(f"folder:{folder}", folder).test
    held = Split(test.held(), test.labels, sampling=test.sampling)
    assert test.digest() == held.digest() and test.digest() == test.to("cpu").digest()
    rows = np.array([7, 0, 11])
    assert test.chosen(rows).digest() == held.chosen(rows).digest() != held.digest()
    part, same = test.take(6), held.take(6)
    assert part.positions.tolist() == same.positions.tolist()
    assert part.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(part.images(slice(1, 4)), same.images(slice(1, 4)))


def test_without_parts_all_images_are_for_tests_and_folders_within_a_class_are_its_own(folder, tmp_path):
    shutil.move(folder / "test" / "owl" / "3.png", folder / "test" / "cat" / "deep.png")
    (folder / "test" / "owl" / "a" / "b").mkdir(parents=True)
    shutil.move(folder / "test" / "owl" / "0.png", folder / "test" / "owl" / "a" / "b" / "0.png")
    dataset = load_dataset(f"folder:{folder / 'test'}", tmp_path)
    assert (len(dataset.train), dataset.class_names) == (0, CLASSES)
    assert dataset.test.labels.tolist() == [0] * 5 + [1] * 4 + [2] * 3
    assert dataset.test.held()[-3:, 0, 0, 0].tolist() == [1, 2, 0]
    told = refusal(lambda: load_dataset(f"folder:{folder / 'test' / 'owl'}", tmp_path))
    assert "has 1 folders of classes" in told


def test_some_images_are_remembered_and_the_oldest_are_forgotten(folder, monkeypatch):
    monkeypatch.setattr(stored_images, "REMEMBERED", 3 * 192)
    opened = []

    class Counted(ImageFiles):
        def opened(self, number):
            opened.append(number)
            return super().opened(number)

    source = Counted([str(path) for path in sorted((folder / "test" / "cat").glob("*.png"))])
    images = StoredImages.all_of(source, 4, (8, 8), Preprocessing())
    for rows in ([0, 1], [0, 1, 0], [1, 0], [2, 3], [3, 2, 0], [1]):
        assert images[torch.tensor(rows)][:, 0, 0, 0].tolist() == rows
    assert opened == [0, 1, 2, 3, 1]
    assert images[torch.tensor([0, 1, 2, 3])][:, 0, 0, 0].tolist() == [0, 1, 2, 3]


# ------------------------------------------------------------------------------------------------ preprocessing


@pytest.mark.parametrize(
    ("text", "size", "middle"),
    [
        # 20 x 10 becomes 16 x 8, and of those columns 4 to 11 stay: the right half begins at column 4 of what stays.
        ("Res8Crop8", (20, 10), 4),
        # Columns 6 to 13 of 20, rows 1 to 8 of 10.
        ("Crop8", (20, 10), 4),
        ("Res8", (20, 10), 4),
        ("BicubicRes16Crop8", (10, 20), 4),
    ],
)
def test_preprocessing_ends_where_arithmetic_says(text, size, middle):
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 200
    found = np.asarray(Preprocessing(text)(Image.fromarray(pixels)))
    assert found.shape == (8, 8, 3)
    assert (found[:, : middle - 2] < 20).all() and (found[:, middle + 2 :] > 180).all()
    if text == "Crop8":
        assert (found[:, :middle] == 0).all() and (found[:, middle:] == 200).all()


def test_preprocessing_is_that_of_robustbench():
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    rng = np.random.default_rng(0)
    for size in ((37, 23), (23, 37), (31, 16), (16, 16)):
        image = Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8))
        for text, steps in {
            "Res16Crop14": [Resize(16), CenterCrop(14)],
            "BicubicRes18Crop15": [Resize(18, interpolation=InterpolationMode.BICUBIC), CenterCrop(15)],
            "Crop13": [CenterCrop(13)],
            "Res12": [Resize([12, 12])],
        }.items():
            expected = image
            for step in steps:
                expected = step(expected)
            np.testing.assert_array_equal(np.asarray(Preprocessing(text)(image)), np.asarray(expected), text)


def test_images_of_several_sizes_are_asked_how_they_become_one(folder, tmp_path):
    picture(folder / "test" / "dog" / "9.png", size=(12, 10))
    name = f"folder:{folder}"
    told = refusal(lambda: load_dataset(name, tmp_path))
    assert "cat/0.png is 8x8" in told and "dog/9.png 12x10" in told and "--preprocessing Res256Crop224" in told
    dataset = load_dataset(name, tmp_path, preprocessing="Res6Crop4")
    assert (dataset.image_shape, dataset.preprocessing) == ((3, 4, 4), "Res6Crop4")
    assert dataset.test.held().shape == (13, 3, 4, 4)
    told = refusal(lambda: load_dataset(name, tmp_path, preprocessing="Crop9").test.held())
    assert "is 8x8, smaller than the 9x9 that are cut out of it" in told
    for text in ("", "Crop", "Bicubic", "BicubicCrop8", "Crop8Res9", "Res0", "256"):
        assert "as RobustBench names it" in refusal(lambda text=text: Preprocessing(text))
    told = refusal(lambda: load_dataset("digits", tmp_path, preprocessing="Crop8"))
    assert "would change nothing" in told


# ---------------------------------------------------------------------------------------------- what is refused


def test_a_broken_image_is_named_in_one_line(folder, tmp_path, monkeypatch):
    name, path = f"folder:{folder}", folder / "test" / "dog" / "1.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    test = load_dataset(name, tmp_path).test
    assert f"{path} cannot be used as an image: " in refusal(test.digest)
    path.write_bytes(b"no image")
    assert f"{path} cannot be used as an image: " in refusal(lambda: load_dataset(name, tmp_path))
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(path)
    told = refusal(load_dataset(name, tmp_path).test.held)
    assert f"{path} cannot be used as an image: it has more than eight bits a channel" in told
    path.write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # of 64: what Pillow would only warn of
    assert "could be decompression bomb" in refusal(lambda: load_dataset(name, tmp_path))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert "could be decompression bomb" in refusal(lambda: load_dataset(name, tmp_path))


def test_places_without_images_are_refused(folder, tmp_path, monkeypatch):
    def told(name):
        return refusal(lambda: load_dataset(name, tmp_path))

    assert "is no folder that is there" in told("folder:nowhere")
    assert "is no folder that is there" in told("folder:")
    shutil.rmtree(folder / "test")
    assert "has images to train on alone" in told(f"folder:{folder}")
    (folder / "val" / "cat").mkdir(parents=True)
    assert "has no image to test on: files end in .jpg" in told(f"folder:{folder}")
    monkeypatch.setattr(image_folders, "MOST_FILES", 1)
    assert "has more than 1 images in" in told(f"folder:{folder / 'train'}")


def test_too_many_images_for_memory_are_refused_with_a_way_out(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(stored_images, "MOST_AT_ONCE", 5 * 192)
    train = load_dataset(f"folder:{folder}", tmp_path).train
    told = refusal(train.held)
    assert "6 images of 3x8x8 take" in told and "take at most 5 of them (--limit-train" in told
    assert train.take(5).held().shape == (5, 3, 8, 8)


# ---------------------------------------------------------------------------------------- ImageNet and others


def test_imagenet_is_the_images_of_robustbench_in_its_order(tmp_path, monkeypatch):
    listed, label = image_folders.published()
    assert (len(listed), len(set(listed)), len(label)) == (5000, 5000, 1000)
    assert listed[:2] == ["n09468604/ILSVRC2012_val_00015253.JPEG", "n02823750/ILSVRC2012_val_00020685.JPEG"]
    assert sorted(label, key=label.__getitem__) == sorted(label)
    few = [listed[0], listed[1], listed[2]]
    monkeypatch.setattr(image_folders, "published", lambda: (few, label))
    for number, one in enumerate(few):
        path = tmp_path / "val" / one
        path.parent.mkdir(parents=True)
        Image.new("RGB", (300, 280 + number), (60 * number, 0, 0)).save(path, "JPEG")
    dataset = load_dataset(f"imagenet:{tmp_path}", tmp_path)
    assert (dataset.num_classes, dataset.preprocessing, dataset.image_shape) == (1000, "Res256Crop224", (3, 224, 224))
    assert dataset.test.labels.tolist() == [label[one.partition("/")[0]] for one in few]
    assert dataset.test.take(2).positions.tolist() == [0, 1]
    assert dataset.test.pixels[torch.tensor([2])][0, 0, 0, 0] == 120
    assert dict(dataset.epsilons) == {"linf": "4/255", "l2": "2", "l1": "255"}
    second = dataset.test.pixels[torch.tensor([1])]
    for one in few:
        shutil.move(tmp_path / "val" / one, tmp_path / "val" / one.partition("/")[2])
    flat = load_dataset(f"imagenet:{tmp_path}", tmp_path)
    assert torch.equal(flat.test.pixels[torch.tensor([1])], second)
    (tmp_path / "val" / few[1].partition("/")[2]).unlink()
    told = refusal(lambda: load_dataset(f"imagenet:{tmp_path}", tmp_path))
    assert "lacks 1 of the 3 images that RobustBench evaluates on" in told and "00020685" in told


def test_tiny_imagenet_takes_its_classes_from_annotations(tmp_path):
    for name, number in (("n02", 0), ("n01", 1)):
        picture(tmp_path / "train" / name / "images" / f"{number}.png")
    for number in range(3):
        picture(tmp_path / "val" / "images" / f"{number}.png")
    lines = ["2.png\tn01\t0\t0\t9\t9", "0.png\tn02\t0\t0\t9\t9", "1.png\tn01\t0\t0\t9\t9"]
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(lines))
    dataset = load_dataset(f"tinyimagenet:{tmp_path}", tmp_path)
    assert (dataset.class_names, dataset.test.labels.tolist()) == (("n01", "n02"), [0, 1, 0])
    assert dataset.test.held()[:, 0, 0, 0].tolist() == [2, 0, 1]
    assert (dataset.train.labels.tolist(), dataset.train.held()[:, 0, 0, 0].tolist()) == ([0, 1], [1, 0])
    assert dataset.epsilons["linf"] == "8/255"
    (tmp_path / "val" / "val_annotations.txt").write_text("2.png n01")
    told = refusal(lambda: load_dataset(f"tinyimagenet:{tmp_path}", tmp_path))
    assert "has lines without a file and a class" in told


class Rows:
    """As a split of the library datasets: columns by name, rows by number, and types of columns."""

    def __init__(self, labels, names):
        kinds = {name: type(name, (), {"names": names})() for name in ("Image", "ClassLabel")}
        self.features = {"label": kinds["ClassLabel"], "picture": kinds["Image"]}
        self.labels = labels

    def __getitem__(self, key):
        return self.labels if key == "label" else {"picture": Image.new("L", (8, 8), 10 * key)}


def test_a_dataset_of_the_hub(tmp_path, monkeypatch):
    asked = []
    library = ModuleType("datasets")
    library.load_dataset = lambda *name: (
        asked.append(name) or {"train": Rows([1, 0], ["no", "yes"]), "validation": Rows([0, 1, 1], ["no", "yes"])}
    )
    library.load_from_disk = lambda place: {"test": Rows([0, -1], ["no", "yes"])}
    monkeypatch.setitem(__import__("sys").modules, "datasets", library)
    dataset = load_dataset("hf:owner/name:small", tmp_path)
    assert asked == [("owner/name", "small")]
    assert (dataset.class_names, dataset.image_shape) == (("no", "yes"), (3, 8, 8))
    assert (dataset.train.labels.tolist(), dataset.test.labels.tolist()) == ([1, 0], [0, 1, 1])
    assert dataset.test.held()[:, 2, 3, 3].tolist() == [0, 10, 20]
    assert "images without a label (1)" in refusal(lambda: load_dataset(f"hf:{tmp_path}", tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert "Run: pip install datasets." in refusal(lambda: load_dataset("hf:owner/name", tmp_path))


def test_names_of_places_become_parts_of_paths():
    for dataset, short in {
        "cifar10": "cifar10",
        "npz:data/mine.npz": "npz-mine",
        "folder:/data/cats.v2/": "folder-cats.v2",
        "hf:owner/name:small": "hf-name-small",
    }.items():
        assert short_name(dataset) == short
    assert dataset_protocol("folder:x").sampling == "stratified" and dataset_protocol("imagenet:x").sampling == "first"


# ------------------------------------------------------------------------------------------------ some classes


def test_some_classes_are_labelled_anew(folder, tmp_path):
    name = f"folder:{folder}"
    dataset = load_dataset(name, tmp_path, classes=("owl", "cat"))
    assert (dataset.num_classes, dataset.class_names, dataset.kept_classes) == (2, ("cat", "owl"), (0, 2))
    assert dataset.test.labels.tolist() == [0] * 4 + [1] * 4
    assert dataset.test.held()[:, 0, 1, 1].tolist() == [0] * 4 + [100] * 4
    assert (dataset.train.labels.tolist(), dataset.test.positions.tolist()) == ([0, 0, 1, 1], list(range(8)))
    again = load_dataset(name, tmp_path, classes=[0, 2])
    assert again.test.digest() == dataset.test.digest()
    digits = load_dataset("digits", tmp_path, classes=("3", "7"))
    assert (digits.kept_classes, digits.class_names, digits.train.labels.unique().tolist()) == ((3, 7), (), [0, 1])
    for classes, told in (
        (("owl", "bat"), "unknown class 'bat'. Did you mean 'cat'? Choose from: cat, dog, owl."),
        (("owl", "2"), "classes owl, 2 are fewer than two"),
        (("owl", "3"), "unknown class '3'"),
    ):
        assert told in refusal(lambda classes=classes: load_dataset(name, tmp_path, classes=classes))
    assert "digits has no class '10'" in refusal(lambda: load_dataset("digits", tmp_path, classes=("1", "10")))


MODEL = """
import torch
from torch import nn

class Reds(nn.Module):
    '''Of 0, 50 and 100 in red, which one an image is: as many logits as are asked for.'''
    def __init__(self, levels):
        super().__init__()
        self.levels = nn.Parameter(torch.tensor(levels) / 255)
    def forward(self, images):
        red = images[:, 0, 1:].mean((1, 2))
        return -(5 * (red[:, None] - self.levels)) ** 2

def three():
    return Reds([0.0, 50.0, 100.0])

def two():
    return Reds([0.0, 100.0])
"""


@pytest.fixture
def here(bench, folder, tmp_path):
    (tmp_path / "m.py").write_text(MODEL)
    return bench


def evaluated(bench, model, *options):
    words = ("eval", "--model", f"m.py:{model}", "--dataset", "folder:set", "--probes", 0, *options)
    code, output = bench(*words)
    assert code == 0, output
    return output


def test_a_part_of_a_folder_is_evaluated_verified_and_shown(here, folder):
    options = ("--classes", "cat,owl", "--limit", 6, "--eps", "60/255", "--save-adversarials")
    output = evaluated(here, "two", "--suite", "quick", *options)
    path = "results/two-quick-v1-classes-cat_owl-limit6-eps60_255.h5"
    result = read_result(path)
    assert "folder:set, linf 60/255, suite quick version 1, 6 samples of 2 classes" in output
    assert (result.run["kept_classes"], result.run["class_names"]) == ([0, 2], ["cat", "owl"])
    assert (result.run["preprocessing"], result.run["dataset_size"]) == ("none", 8)
    # A radius of 60 moves 0 and 100 over the middle, which is 50.
    assert [int((record.prediction == result.label).sum()) for record in result.attacks.values()] == [0, 0]
    code, output = here("verify", path, "--model", "m.py:two")
    assert code == 0 and "PGD-20: confirmed (6 broken samples, each by its image)" in output, output
    for number in range(4):
        picture(folder / "test" / "cat" / f"{number}.png", 1)
    code, output = here("verify", path, "--model", "m.py:two")
    assert code == 1 and "samples: refuted" in output


def test_which_images_are_taken_is_in_the_name_of_the_file(here, tmp_path):
    evaluated(here, "three", "--suite", "clean", "--limit", 4, "--sampling", "first")
    evaluated(here, "three", "--suite", "clean", "--limit", 4)
    names = sorted(path.name for path in (tmp_path / "results").glob("*.h5"))
    assert names == ["three-clean-v1-first4.h5", "three-clean-v1-limit4.h5"]
    words = ("eval", "--model", "m.py:three", "--dataset", "folder:set", "--suite", "clean")
    assert "--sampling first would change nothing" in refused(*words, "--sampling", "first")


def test_a_training_on_a_folder_records_how_it_was_read(here, folder):
    words = ("--dataset", "folder:set", "--backbone", "cnn-small", "--epochs", 1, "--preprocessing", "Res8")
    code, output = here("train", "--defense", "st", *words, "--classes", "dog,owl")
    assert code == 0, output
    run = "runs/folder-set/cnn-small/st/seed-0"
    about = load_checkpoint(folder.parent / run).config["dataset"]
    assert (about["kept_classes"], about["preprocessing"], about["train_size"]) == ([1, 2], "Res8", 4)
    code, output = here("eval", run, "--suite", "clean", "--probes", 0)
    assert code == 0, output
    result = read_result(f"{run}/results/clean-v1.h5")
    assert (result.run["kept_classes"], result.run["preprocessing"], len(result.label)) == ([1, 2], "Res8", 8)
    assert "--classes dog,owl --preprocessing Res8" in " ".join(commands(result))


# ------------------------------------------------------------------------------------------ corrupted images


def test_corrupted_files_are_matched_by_class_and_name(here, folder, tmp_path):
    (tmp_path / "suite.json").write_text(
        '{"name": "some", "version": 1, "kind": "corruptions", "corruptions": ["fog", "near_focus"]}'
    )
    for corruption in ("fog", "near_focus"):
        for severity in range(1, 6):
            for label, name in enumerate(CLASSES):
                for number in range(4):
                    # From severity 3 on fog makes all images those of the last class.
                    foggy = corruption == "fog" and severity > 2
                    path = tmp_path / "C" / corruption / str(severity) / name / f"{number}.png"
                    picture(path, 100 if foggy else 50 * label)
    evaluated(here, "three", "--suite", "suite.json", "--corruptions-dir", "C", "--out", "r.h5")
    shown = read_result("r.h5").corruptions
    right = {label: int((record.prediction == read_result("r.h5").label).sum()) for label, record in shown.items()}
    assert right == {
        **{f"fog-{n}": 12 if n < 3 else 4 for n in range(1, 6)},
        **{f"near_focus-{n}": 12 for n in range(1, 6)},
    }
    (tmp_path / "C" / "fog" / "4" / "dog" / "2.png").unlink()
    words = ("eval", "--model", "m.py:three", "--dataset", "folder:set", "--suite", "suite.json", "--out", "s.h5")
    told = refused(*words, "--corruptions-dir", "C", "--probes", 0)
    assert "C/fog/4 lacks 1 of 12 images; the first is dog/2.*" in told


# --------------------------------------------------------------------------------------------------- memory


def test_large_images_are_given_to_a_cpu_a_few_at_a_time():
    cpu, other = torch.device("cpu"), torch.device("cuda")
    assert [room_for((3, side, side), cpu) for side in (8, 32, 64, 224, 512)] == [None, None, 168, 8, 8]
    assert room_for((3, 224, 224), other) is None


class Bright(torch.nn.Module):
    """Class 1 where the mean is above 0.05: any step upwards breaks an image that is below."""

    def forward(self, images):
        mean = images.mean((1, 2, 3))
        return torch.stack([mean * 0 + 0.05, mean], 1)


def kept_on_disk(place, count):
    """Saved images of `count` broken ones of 48 x 48, written from blocks of 32; and the clean ones."""
    source = ImageFiles([str(picture(place / f"{number}.png", size=(48, 48))) for number in range(2)] * (count // 2))
    pixels = StoredImages.all_of(source, count, (48, 48), Preprocessing())
    split = Split(pixels, torch.zeros(count, dtype=torch.int64))
    target = Target(Bright(), split, batch_size=32, keeps_images=True)
    suite = Suite("s", 1, "", (AttackCell("FGSM", "fgsm", "linf", "8/255"),), {})
    outcome = run_suite(target, suite, parts=PartStore(place / "r.h5", {}))
    kept = outcome.adversarials["FGSM"]
    write_adversarials({"FGSM": kept}, "0" * 64, place / "r.adversarials.h5")
    return kept, split


def test_no_more_than_a_piece_of_a_large_set_is_in_memory(tmp_path, monkeypatch):
    """320 images are 2.2 MB as bytes and as codes."""
    monkeypatch.setattr(stored_images, "REMEMBERED", 0)
    kept_on_disk(tmp_path / "imports", 2)
    tracemalloc.start()
    kept, split = kept_on_disk(tmp_path, 320)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Of NumPy and Pillow, not of torch; 64 images are written at a time.
    assert most < 1.7e6
    assert len(kept.rows) == 320 and kept.code.shape == (320, 3, 48, 48)
    rows, images = next(kept.images(split, ThreatModel("linf", "8/255"), 8))
    assert rows.tolist() == list(range(8))
    torch.testing.assert_close(images, (split.images(rows) + 8 / 255).clamp(0, 1), atol=1e-6, rtol=0)
