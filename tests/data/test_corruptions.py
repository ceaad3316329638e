"""Corruptions against closed forms and plain loops, and the folders they are kept in."""

import colorsys
import io
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from bench.catalogue.corruption_names import ALL_CORRUPTIONS, COMMON_CORRUPTIONS
from bench.data.corruptions import CORRUPTIONS, SEVERITIES, blur, corrupt, digital, generating, weather
from bench.data.corruptions import spatter as spattering
from bench.data.corruptions.draws import keyed_draws
from bench.data.corruptions.generating import GenerationRequest, generate
from bench.data.corruptions.sets import load_corrupted
from bench.data.datasets import load_dataset
from tests.support.command import bench, refused
from tests.support.refusals import refusal

DRAWN = {
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur", "motion_blur"),
    *("snow", "frost", "fog", "elastic_transform", "spatter"),
}


def by_severity(*values):
    return list(zip(SEVERITIES, values, strict=True))


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def flat(level, count=20, channels=3):
    return np.full((count, 32, 32, channels), level, dtype=np.uint8)


def pictures(count=8):
    """Coloured discs on slanted stripes, 32x32: edges, textures and smooth parts."""
    rows, columns = np.mgrid[:32, :32]
    images = np.empty((count, 32, 32, 3))
    for number, image in enumerate(images):
        stripes = 110 + 40 * np.sin((rows + number * columns) / 2.5)
        disc = (rows - 12 - number % 5) ** 2 + (columns - 18 + number % 3) ** 2 < 60
        for channel in range(3):
            image[..., channel] = np.where(disc, 60 + 60 * channel, stripes - 30 * channel)
    return images.astype(np.uint8)


def test_fifteen_are_common_and_four_are_extra():
    assert len(COMMON_CORRUPTIONS) == 15
    assert tuple(CORRUPTIONS) == ALL_CORRUPTIONS
    assert set(ALL_CORRUPTIONS) - set(COMMON_CORRUPTIONS) == {"speckle_noise", "gaussian_blur", "spatter", "saturate"}
    assert all(len(corruption.constants) == len(SEVERITIES) for corruption in CORRUPTIONS.values())


# ------------------------------------------------------------------------------------------------ noise


@pytest.mark.parametrize(("severity", "deviation"), by_severity(0.04, 0.06, 0.08, 0.09, 0.10))
def test_gaussian_noise_has_its_mean_and_deviation(severity, deviation):
    noise = corrupt(flat(128), "gaussian_noise", severity).astype(float) - 128
    expected = np.hypot(255 * deviation, np.sqrt(1 / 12))
    assert noise.mean() == pytest.approx(-0.5, abs=4 * expected / np.sqrt(noise.size))
    assert noise.std() == pytest.approx(expected, abs=4 * expected / np.sqrt(2 * noise.size))


@pytest.mark.parametrize(("severity", "photons"), by_severity(500, 250, 100, 75, 50))
def test_shot_noise_is_poisson(severity, photons):
    noise = corrupt(flat(51), "shot_noise", severity) / 255 - 0.2
    expected = np.sqrt(0.2 / photons)
    error = expected / np.sqrt(noise.size)
    assert -1 / 255 - 4 * error < noise.mean() < 4 * error
    assert noise.std() == pytest.approx(expected, abs=1 / 255)


@pytest.mark.parametrize(("severity", "share"), by_severity(0.01, 0.02, 0.03, 0.05, 0.07))
def test_impulse_noise_is_half_salt_and_half_pepper(severity, share):
    values = corrupt(flat(128), "impulse_noise", severity)
    error = np.sqrt(share / 2 / values.size)
    for level in (0, 255):
        assert (values == level).mean() == pytest.approx(share / 2, abs=4 * error)
    assert set(np.unique(values)) == {0, 128, 255}


@pytest.mark.parametrize(("severity", "deviation"), by_severity(0.06, 0.1, 0.12, 0.16, 0.2))
def test_speckle_noise_grows_with_the_value(severity, deviation):
    for level in (30, 120):
        noise = corrupt(flat(level), "speckle_noise", severity).astype(float) - level
        expected = np.hypot(level * deviation, np.sqrt(1 / 12))
        assert noise.std() == pytest.approx(expected, abs=4 * expected / np.sqrt(2 * noise.size))


# ------------------------------------------------------------------------------------------------- blur


@pytest.mark.parametrize(
    "name", [name for name in ALL_CORRUPTIONS if "blur" in name] + ["elastic_transform", "pixelate"]
)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_flat_images_stay_as_they_are(name, severity):
    """The weights of every blur sum to 1."""
    for level in (0, 77, 255):
        assert (corrupt(flat(level, count=2), name, severity) == level).all()


def correlated(image, kernel, mode):
    """Correlation of one NHW-less image with a kernel, written out."""
    reach = len(kernel) // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode=mode)
    height, width = image.shape[:2]
    rows, columns = range(len(kernel)), range(len(kernel))
    return sum(kernel[r, c] * padded[r : r + height, c : c + width] for r in rows for c in columns)


@pytest.mark.parametrize(("severity", "sigma"), by_severity(0.4, 0.6, 0.7, 0.8, 1))
def test_gaussian_blur_is_a_convolution(severity, sigma):
    images = random_images(2, 32, 32, 3)
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    expected = np.stack([correlated(image / 255, kernel, "edge") for image in images]) * 255
    assert np.abs(corrupt(images, "gaussian_blur", severity) + 0.5 - expected).max() < 0.51


def test_a_disk_of_radius_one_is_a_cross():
    kernel = blur.disk(1.0, 0.1)
    middle = len(kernel) // 2
    assert kernel[middle - 1 : middle + 2, middle - 1 : middle + 2] == pytest.approx(
        np.array([[0, 0.2, 0], [0.2, 0.2, 0.2], [0, 0.2, 0]])
    )


@pytest.mark.parametrize(
    ("severity", "radius", "alias"), [(1, 0.3, 0.4), (2, 0.4, 0.5), (3, 0.5, 0.6), (4, 1, 0.2), (5, 1.5, 0.1)]
)
def test_defocus_blur_is_a_convolution_with_a_disk(severity, radius, alias):
    grid = np.arange(-3, 4) ** 2
    disk = (grid + grid[:, None] <= radius**2) / (grid + grid[:, None] <= radius**2).sum()
    soft = np.exp(-(np.array([-1, 0, 1]) ** 2) / (2 * alias**2))
    kernel = ndimage.convolve(disk, np.outer(soft, soft) / soft.sum() ** 2, mode="constant")
    assert kernel.sum() == pytest.approx(1)
    images = random_images(2, 20, 33, 3)
    expected = np.stack([correlated(image / 255, kernel, "reflect") for image in images]) * 255
    assert np.abs(corrupt(images, "defocus_blur", severity) + 0.5 - expected).max() < 0.51


@pytest.mark.parametrize("degrees", [0, 17, -45, 90, -101])
def test_a_smear_takes_the_nearest_pixels_along_a_line(degrees):
    image = random_images(1, 11, 14, 3).astype(np.float32) / 255
    weights = np.exp(-(np.arange(9) ** 2) / (2 * 1.5**2))
    expected = np.zeros_like(image[0])
    for row in range(11):
        for column in range(14):
            for step, weight in enumerate(weights / weights.sum()):
                down = int(np.ceil(step * np.sin(np.deg2rad(degrees)) - 0.5))
                right = int(np.ceil(step * np.cos(np.deg2rad(degrees)) - 0.5))
                source = image[0, min(max(row + down, 0), 10), min(max(column + right, 0), 13)]
                expected[row, column] += weight * source
    result = blur.smeared(image, 4.0, 1.5, np.array([degrees], dtype=np.float32))[0]
    assert np.abs(result - expected).max() < 0.501 / 255


@pytest.mark.parametrize("size", [8, 17, 32])
@pytest.mark.parametrize("factor", [1.0, 1.03, 1.25, 1.75, 2.25])
def test_zooming_is_that_of_scipy(size, factor):
    line = np.random.default_rng(0).random(size)
    crop = int(np.ceil(size / factor))
    top = (size - crop) // 2
    stretched = ndimage.zoom(line[top : top + crop], factor, order=1)
    trim = (len(stretched) - size) // 2
    assert blur.zoom_matrix(size, factor) @ line == pytest.approx(stretched[trim : trim + size])


def test_zoom_blur_is_the_mean_of_the_image_and_its_zooms():
    images = random_images(2, 32, 32, 3)
    factors = [1.0, 1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06]
    matrices = [blur.zoom_matrix(32, factor).toarray() for factor in factors]
    expected = np.mean([np.einsum("ij,kl,njlc->nikc", m, m, images.astype(float)) for m in matrices], axis=0)
    assert np.abs(corrupt(images, "zoom_blur", 1) + 0.5 - expected).max() < 0.51


@pytest.mark.parametrize(("severity", "rounds"), [(1, 1), (4, 2)])
def test_glass_blur_copies_pixels_as_the_published_scan_does(monkeypatch, severity, rounds):
    monkeypatch.setattr(blur, "smoothed", lambda images, sigma: images)
    images = random_images(2, 32, 32, 3)
    expected = images.copy()
    for image, generator in zip(expected, keyed_draws(0, "glass_blur", severity, range(2)), strict=True):
        for _ in range(rounds):
            offsets = generator.integers(-1, 1, (2, 32, 32))
            for row in range(31, 1, -1):
                for column in range(31, 1, -1):
                    down, right = offsets[:, row, column]
                    image[row, column] = image[row + down, column + right]
    assert (corrupt(images, "glass_blur", severity) == expected).all()


# ---------------------------------------------------------------------------------------------- weather


def test_snow_without_flakes_whitens():
    grey = 100 / 255
    whitened = 0.95 * grey + 0.05 * (1.5 * grey + 0.5)
    snowy = corrupt(flat(100), "snow", 1)
    assert snowy.min() == int(255 * whitened)
    assert snowy.max() > 2 * snowy.min()
    assert (corrupt(flat(255), "snow", 3) == 255).all()


def test_flakes_fall_twice_the_second_time_turned():
    snowy = corrupt(flat(0), "snow", 1).astype(int)
    assert (snowy == snowy[:, ::-1, ::-1]).all()
    assert (snowy[..., 0] == snowy[..., 2]).all()


def spectral_slope(layers):
    side = layers.shape[-1]
    window = np.hanning(side)[:, None] * np.hanning(side)
    power = (np.abs(np.fft.fft2(layers * window)) ** 2).mean(0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    chosen = (frequency > 1.5 / side) & (frequency < 0.5)
    return np.polyfit(np.log(frequency[chosen]), np.log(power[chosen]), 1)[0]


@pytest.mark.parametrize(("kind", "slope"), list(enumerate((-2.1, -1.3, -1.9, -1.7, -1.5))))
def test_drawn_frost_has_the_statistics_it_is_said_to_have(kind, slope):
    draws = keyed_draws(0, "frost", 1, range(150))
    ridges = weather.ridges(draws, (32, 32), np.full(150, weather.ICE[kind, 4]))
    assert spectral_slope(ridges) == pytest.approx(slope, abs=0.1)
    assert ridges.mean((1, 2)) == pytest.approx(0, abs=1e-5)
    assert ridges.std((1, 2)) == pytest.approx(1, abs=1e-5)


def test_frost_on_black_is_a_share_of_blue_tinted_ice():
    frosty = corrupt(flat(0, count=100), "frost", 5).mean((1, 2)) / 0.45
    assert (frosty[:, 2] > frosty[:, 0]).all()
    for colour in frosty:
        distances = np.abs(weather.ICE[:, :3] - colour).max(1)
        assert distances.min() < 4  # light ice is cut off at 255


def test_a_plasma_of_two_by_two_by_hand():
    noise = keyed_draws(0, "fog", 1, [0])[0].uniform(-1, 1, (2, 2))
    middle = noise[1, 1]
    heights = np.array([[0, middle / 2 + noise[0, 1]], [middle / 2 + noise[1, 0], middle]])
    expected = (heights - heights.min()) / (heights.max() - heights.min())
    assert weather.plasma_fractal(keyed_draws(0, "fog", 1, [0]), 2, 3.0)[0] == pytest.approx(expected, abs=1e-6)


def test_fog_keeps_the_range():
    assert (corrupt(flat(0), "fog", 5) == 0).all()
    foggy = corrupt(flat(200, count=4), "fog", 2).astype(float)
    lowest = 200 / 255 * 200 / (200 + 0.5 * 255) * 255
    assert foggy.min((1, 2, 3)) == pytest.approx(int(lowest), abs=0.1)
    assert foggy.max((1, 2, 3)) == pytest.approx(200, abs=1)


# ---------------------------------------------------------------------------------------------- digital


def test_brightness_by_hand():
    image = np.full((1, 8, 8, 3), (100, 50, 25), dtype=np.uint8)
    assert (corrupt(image, "brightness", 2) == (125, 62, 31)).all()
    assert (corrupt(flat(0), "brightness", 3) == 38).all()


HSV = {
    "brightness": lambda h, s, v, added: (h, s, min(v + added, 1)),
    "saturate": lambda h, s, v, factor, added: (h, min(s * factor + added, 1), v),
}


@pytest.mark.parametrize("name", HSV)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_hsv_corruptions_are_those_of_colorsys(name, severity):
    image = random_images(1, 16, 16, 3)
    image[0, 0] = np.arange(16)[:, None] * 17  # greys, black and white among them
    constants = CORRUPTIONS[name].constants[severity - 1]
    changed = [
        colorsys.hsv_to_rgb(*HSV[name](*colorsys.rgb_to_hsv(*pixel), *constants))
        for pixel in image.reshape(-1, 3) / 255
    ]
    expected = 255 * np.array(changed).reshape(16, 16, 3)
    assert np.abs(corrupt(image, name, severity)[0] + 0.5 - expected).max() < 0.51


def test_contrast_by_hand():
    image = flat(0, count=1)
    image[:, :16] = (200, 100, 50)
    low = corrupt(image, "contrast", 2)
    assert (low[:, :16] == (150, 75, 37)).all()
    assert (low[:, 16:] == (50, 25, 12)).all()


def test_points_that_do_not_move_are_an_identity_and_a_common_move_is_a_shift():
    rows, columns = digital.affine_sources(np.zeros((1, 3, 2), dtype=np.float32), 9, 12)
    assert rows[0] == pytest.approx(np.mgrid[:9, :12][0], abs=1e-5)
    assert columns[0] == pytest.approx(np.mgrid[:9, :12][1], abs=1e-5)
    rows, columns = digital.affine_sources(np.full((1, 3, 2), (2, -1), dtype=np.float32), 9, 12)
    assert rows[0] == pytest.approx(np.mgrid[:9, :12][0] + 1, abs=1e-5)
    assert columns[0] == pytest.approx(np.mgrid[:9, :12][1] - 2, abs=1e-5)


def test_mirrors_by_hand():
    assert digital.mirrored(np.arange(-4, 7), 3, False).tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]
    assert digital.mirrored(np.arange(-4, 7), 3, True).tolist() == [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0]


@pytest.mark.parametrize(("repeat_edge", "mode"), [(False, "mirror"), (True, "reflect")])
def test_values_between_pixels_are_those_of_scipy(repeat_edge, mode):
    image = np.random.default_rng(0).random((1, 9, 12, 1)).astype(np.float32)
    rows, columns = np.random.default_rng(1).uniform(-7, 19, (2, 1, 9, 12)).astype(np.float32)
    expected = ndimage.map_coordinates(image[0, ..., 0], [rows[0], columns[0]], order=1, mode=mode)
    assert digital.sampled(image, rows, columns, repeat_edge)[0, ..., 0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("severity", "side"), by_severity(30, 28, 27, 24, 20))
def test_pixelate_leaves_fewer_pixels(severity, side):
    image = random_images(1, 32, 32, 3)
    result = corrupt(image, "pixelate", severity)[0].astype(int)
    for axis in (0, 1):
        assert 1 + np.diff(result, axis=axis).any(axis=(1 - axis, 2)).sum() == side
    small = Image.fromarray(image[0]).resize((side, side), Image.Resampling.BOX)
    assert (result == np.asarray(small.resize((32, 32), Image.Resampling.BOX))).all()


@pytest.mark.parametrize(("severity", "quality"), by_severity(80, 65, 58, 50, 40))
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_that_of_pillow(severity, quality, channels):
    image = random_images(1, 21, 32, channels)
    file = io.BytesIO()
    Image.fromarray(image[0].squeeze()).save(file, "JPEG", quality=quality)
    expected = np.asarray(Image.open(file)).reshape(image[0].shape)
    assert (corrupt(image, "jpeg_compression", severity)[0] == expected).all()


# ---------------------------------------------------------------------------------------------- spatter


def test_an_edge_is_one_pixel_wide_and_weak_edges_need_a_strong_one():
    layers = np.zeros((2, 9, 9), dtype=np.uint8)
    layers[0, :, 4:] = 200  # a step of 200: the Sobel norm is 800 on both sides of it
    layers[1, :, 4:] = 30  # 120: above 50, below 150
    found = spattering.canny_edges(layers)
    assert (found[0] == (np.arange(9) == 3)).all()
    assert not found[1].any()
    layers[1, 6:, 4:] = 200
    assert spattering.canny_edges(layers)[1, :5, 3].all()


def test_equalising_by_hand():
    levels = np.array([[7, 7], [9, 12], [12, 12]], dtype=np.uint8)
    assert spattering.equalised(levels).tolist() == [[0, 0], [64, 255], [255, 255]]
    assert spattering.equalised(levels[:1]).tolist() == [[7, 7]]


def test_mud_is_brown_and_water_only_adds():
    white = corrupt(flat(255), "spatter", 5).reshape(-1, 3)
    covered = white[(white[:, 0] < 110)]
    assert len(covered)
    assert (covered[:, 0] > covered[:, 1]).all()
    assert (covered[:, 1] > covered[:, 2]).all()
    images = pictures()
    assert (corrupt(images, "spatter", 2) >= images).all()
    assert (corrupt(images, "spatter", 2) > images).any()


# ------------------------------------------------------------------------------------------ all of them

# By their constants these do not grow with each step: jitter and shuffled distances shrink while smoothing grows, the
# image's own weight falls, colours fade and then glow, water turns to mud. Motion blur's step from 3 to 4 only adds
# weights of exp(-18) and less.
UNEVEN = {"elastic_transform", "glass_blur", "frost", "saturate", "spatter", "motion_blur"}


@pytest.mark.parametrize("name", [name for name in ALL_CORRUPTIONS if name not in UNEVEN])
def test_harm_grows_with_severity(name):
    images = pictures(16)
    errors = [np.square(corrupt(images, name, severity) - images.astype(float)).mean() for severity in SEVERITIES]
    assert (np.diff(errors) > 0).all(), errors


@pytest.mark.parametrize("name", ALL_CORRUPTIONS)
def test_neither_order_nor_shards_nor_batches_matter(name):
    images = pictures(6)
    whole = corrupt(images, name, 3, seed=5)
    order = np.array([4, 0, 5, 2])
    assert (corrupt(images[order], name, 3, seed=5, indices=order) == whole[order]).all()
    assert (corrupt(images[3:4], name, 3, seed=5, indices=[3]) == whole[3:4]).all()
    assert (corrupt(images, name, 3, seed=6) != whole).any() == (name in DRAWN)
    assert corrupt(images[:0], name, 3).shape == (0, 32, 32, 3)


def test_each_severity_and_corruption_draws_for_itself():
    first = keyed_draws(0, "fog", 1, [0])[0].random()
    keys = [(0, "fog", 2, [0]), (0, "snow", 1, [0]), (1, "fog", 1, [0]), (0, "fog", 1, [1])]
    assert first not in [keyed_draws(*key)[0].random() for key in keys]


@pytest.mark.parametrize("shape", [(8, 8), (9, 31), (8, 70), (50, 33)])
def test_every_size_and_both_numbers_of_channels(shape):
    for channels in (1, 3):
        images = random_images(2, *shape, channels)
        for name in ALL_CORRUPTIONS:
            for severity in (1, 5):
                changed = corrupt(images, name, severity)
                assert (changed.shape, changed.dtype) == (images.shape, np.uint8)


@pytest.mark.parametrize(
    "name", sorted({*ALL_CORRUPTIONS} - {"frost", "spatter"} - DRAWN | {"fog", "snow", "motion_blur"})
)
def test_grey_images_are_images_of_three_equal_channels(name):
    grey = pictures(3)[..., :1]
    coloured = corrupt(np.repeat(grey, 3, axis=3), name, 2).astype(int)
    assert np.abs(corrupt(grey, name, 2) - coloured).max() <= 1


def test_lengths_grow_with_larger_images_and_stay_for_smaller_ones():
    for side, sigma in ((16, 1.0), (32, 1.0), (96, 3.0)):
        impulse = np.zeros((1, side, side, 1), dtype=np.uint8)
        impulse[0, side // 2, side // 2] = 255
        spread = corrupt(impulse, "gaussian_blur", 5).max()
        assert spread == pytest.approx(255 / (2 * np.pi * sigma**2), abs=1.1)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_spatter_covers_as_much_of_a_larger_image(severity):
    small, large = (
        (corrupt(np.full((count, side, side, 1), 128, dtype=np.uint8), "spatter", severity) != 128).mean()
        for side, count in ((32, 100), (96, 20))
    )
    assert small / 2 < large < 2 * small


@pytest.mark.parametrize(
    ("shape", "name", "severity", "message"),
    [
        ((1, 7, 32, 3), "fog", 1, "sides of 8 or more"),
        ((1, 32, 32, 2), "fog", 1, "1 or 3 channels"),
        ((1, 32, 32, 3), "fgo", 1, "Did you mean 'fog'"),
        ((1, 32, 32, 3), "fog", 6, "severity 6 does not exist"),
    ],
)
def test_what_cannot_be_corrupted(shape, name, severity, message):
    refusal(lambda: corrupt(np.zeros(shape, dtype=np.uint8), name, severity), message)


# ---------------------------------------------------------------------------------------------- folders

FEW = ("fog", "contrast", "saturate")


def generated(folder, **options):
    settings = {"limit": 7, "seed": 3, "corruptions": FEW, **options}
    return generate(GenerationRequest("digits", folder, **settings))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "digits-C"
    assert generated(folder) == list(FEW)
    return folder


@pytest.fixture
def copied(made, tmp_path):
    folder = tmp_path / "digits-C"
    folder.mkdir()
    for name, data in contents(made).items():
        (folder / name).write_bytes(data)
    return folder


def test_a_folder_holds_what_was_corrupted(made, tmp_path):
    clean = load_dataset("digits", tmp_path).test.take(7)
    levels = generating.whole_levels(clean)
    assert levels.max() == 255
    assert (levels[3, :, :, 0].astype(int) == np.rint(clean.pixels[3, 0].double().numpy() * 255 / 16)).all()
    corrupted = load_corrupted(made, "digits", FEW)
    assert list(corrupted) == [(name, severity) for name in FEW for severity in SEVERITIES]
    for (name, severity), split in corrupted.items():
        expected = corrupt(levels, name, severity, seed=3)
        assert (split.pixels.numpy() == expected.transpose(0, 3, 1, 2)).all()
        assert torch.equal(split.labels, clean.labels)
        assert split.levels == 255
    assert (corrupted.name, corrupted.generated) == ("digits-C-gen1", True)
    assert corrupted.manifest["samples"] == clean.digest()
    assert ("fog", 6) not in list(corrupted)
    with pytest.raises(KeyError):
        corrupted["snow", 1]
    few = load_corrupted(made, "digits", ("fog",), limit=2)["fog", 4]
    assert torch.equal(few.pixels, corrupted["fog", 4].pixels[:2])
    assert len(few.labels) == 2


def test_the_layout_is_that_of_cifar10_c(made):
    assert {path.name for path in made.iterdir()} == {
        *(f"{name}.npy" for name in (*FEW, "labels")),
        *("generated.json", "preview.png"),
    }
    assert np.load(made / "fog.npy").shape == (35, 8, 8, 1)
    labels = np.load(made / "labels.npy")
    assert (labels.shape, labels.dtype) == ((35,), np.uint8)
    manifest = json.loads((made / "generated.json").read_text())
    assert manifest["generated"] is True
    assert manifest["procedural"] == ["frost"]
    assert (manifest["dataset"], manifest["count"], manifest["seed"]) == ("digits", 7, 3)
    assert {"numpy", "scipy", "pillow", "bench"} == set(manifest["versions"])


def test_the_preview_shows_the_first_image_of_every_block(made):
    sheet = np.asarray(Image.open(made / "preview.png"))
    assert sheet.shape == (20 + 3 * 100, 130 + 6 * 100, 3)
    fog = np.load(made / "fog.npy")
    for severity in SEVERITIES:
        left = 130 + severity * 100
        tile = sheet[20:116:12, left : left + 96 : 12]
        assert (tile == fog[7 * (severity - 1)]).all()


def test_two_processes_write_the_same_bytes(made, tmp_path):
    assert generated(tmp_path / "twice", processes=2) == list(FEW)
    assert contents(tmp_path / "twice").keys() == contents(made).keys()
    for name in (*FEW, "labels"):
        assert (tmp_path / "twice" / f"{name}.npy").read_bytes() == (made / f"{name}.npy").read_bytes()


def test_chunks_do_not_matter(made, tmp_path, monkeypatch):
    monkeypatch.setattr(generating, "CHUNK", 3 * 8 * 8)
    generated(tmp_path / "chunks")
    assert contents(tmp_path / "chunks") == contents(made)


def test_a_stopped_generation_goes_on_to_the_same_bytes(made, tmp_path, monkeypatch):
    folder, calls = tmp_path / "stopped", []

    def stopping(images, name, severity, *arguments):
        calls.append((name, severity))
        if len(calls) == 10:
            raise KeyboardInterrupt
        return corrupt(images, name, severity, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(generating, "corrupt", stopping)
        with pytest.raises(KeyboardInterrupt):
            generated(folder)
    first = (folder / "fog.npy").stat().st_mtime_ns
    refusal(lambda: load_corrupted(folder, "digits", FEW), "contrast.npy")
    calls.clear()
    calls.extend([("again", 0)] * 100)
    monkeypatch.setattr(generating, "corrupt", stopping)
    assert generated(folder) == ["contrast", "saturate"]
    assert calls[101:] == [("contrast", 4), ("contrast", 5), *(("saturate", severity) for severity in SEVERITIES)]
    assert (folder / "fog.npy").stat().st_mtime_ns == first
    assert contents(folder) == contents(made)


def test_what_is_damaged_is_made_again_and_more_can_be_added(copied, made):
    data = bytearray((copied / "fog.npy").read_bytes())
    data[-1] ^= 1
    (copied / "fog.npy").write_bytes(bytes(data))
    assert generated(copied) == ["fog"]
    assert contents(copied) == contents(made)
    assert generated(copied, corruptions=("pixelate", "fog")) == ["pixelate"]
    assert len(load_corrupted(copied, "digits", (*FEW, "pixelate"))) == 20


@pytest.mark.parametrize(
    ("options", "message"), [({"seed": 4}, "different seed"), ({"limit": 6}, "samples"), ({}, "not generated here")]
)
def test_a_folder_of_another_set_or_of_others_is_left_alone(copied, options, message):
    if not options:
        (copied / "generated.json").unlink()
    before = contents(copied)
    refusal(lambda: generated(copied, **options), message)
    assert contents(copied) == before


def rewritten(name, change):
    """Damage: an array of the folder with something done to it."""
    return lambda folder: np.save(folder / f"{name}.npy", change(np.load(folder / f"{name}.npy")))


DAMAGES = {
    "missing": (lambda folder: (folder / "fog.npy").unlink(), "has no fog.npy"),
    "no labels": (lambda folder: (folder / "labels.npy").unlink(), "has no labels.npy"),
    "truncated": (lambda folder: os.truncate(folder / "fog.npy", 999), "fog.npy is missing, cut short"),
    "empty": (lambda folder: os.truncate(folder / "fog.npy", 0), "fog.npy is missing, cut short"),
    "objects": (
        rewritten("fog", lambda fog: np.array([{}, []], object)),
        "fog.npy is missing, cut short or not an array",
    ),
    "too few": (rewritten("fog", lambda fog: fog[:-1]), "fog.npy holds 34 images, but labels.npy implies 35"),
    "floats": (rewritten("fog", lambda fog: fog.astype(np.float32)), "fog.npy holds float32"),
    "channels first": (rewritten("fog", lambda fog: fog.transpose(0, 3, 1, 2)), "fog.npy holds uint8 (35, 1, 8, 8)"),
    "other sizes": (rewritten("fog", lambda fog: np.concatenate([fog, fog], axis=1)), "of 8x8x1, 16x8x1"),
    "other labels": (rewritten("labels", lambda y: [*y[:-1], (y[-1] + 1) % 10]), "other labels at one severity"),
    "altered labels": (rewritten("labels", lambda y: (y + 1) % 10), "labels.npy is not as it was generated"),
    "manifest": (
        lambda folder: (folder / "generated.json").write_text('{"format": "bench-corruptions", "blocks": 3}'),
        "generated.json is damaged",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_one_line(copied, damage, message):
    damage(copied)
    refusal(lambda: load_corrupted(copied, "digits", FEW), message)


def test_an_altered_image_is_noticed_when_it_is_read(copied):
    fog = np.load(copied / "fog.npy")
    fog[8, 0, 0, 0] ^= 1
    np.save(copied / "fog.npy", fog)
    corrupted = load_corrupted(copied, "digits", FEW)
    assert len(corrupted["fog", 1]) == 7
    refusal(lambda: corrupted["fog", 2], "not as it was generated at severity 2")


@pytest.mark.parametrize(
    ("dataset", "corruptions", "limit", "message"),
    [
        ("mnist", FEW, None, "corruptions of digits, not of mnist"),
        ("digits", ("fgo",), None, "Did you mean 'fog'"),
        ("digits", FEW, 8, "limit 8 does not fit 7"),
        ("digits", FEW, 0, "limit 0 does not fit 7"),
        ("digits", COMMON_CORRUPTIONS, None, "has no gaussian_noise.npy"),
    ],
)
def test_what_a_folder_does_not_hold(made, dataset, corruptions, limit, message):
    refusal(lambda: load_corrupted(made, dataset, corruptions, limit), message)


def published(folder, classes, count=10_000):
    """A folder of the published form, all black but for one pixel: sparse where the file system can."""
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(np.arange(count) % classes, 5).astype(np.uint8))
    fog = np.lib.format.open_memmap(folder / "fog.npy", "w+", np.uint8, (5 * count, 32, 32, 3))
    fog[2 * count + 1, 4, 5, 2] = 9
    fog.flush()


@pytest.mark.parametrize(
    ("dataset", "classes", "name"), [("cifar10", 10, "CIFAR-10-C"), ("cifar100", 100, "CIFAR-100-C")]
)
def test_published_folders(tmp_path, dataset, classes, name):
    published(tmp_path / "C", classes)
    corrupted = load_corrupted(tmp_path / "C", dataset, ("fog",), limit=20)
    assert (corrupted.name, corrupted.generated, len(corrupted)) == (name, False, 5)
    split = corrupted["fog", 3]
    assert split.pixels.shape == (20, 3, 32, 32)
    assert split.pixels.nonzero().tolist() == [[1, 2, 4, 5]]
    assert split.labels.dtype == torch.int64
    assert split.labels.tolist() == list(range(20)) if classes > 20 else [*range(10), *range(10)]


def test_a_set_of_ones_own_is_not_taken_for_the_published_one(tmp_path):
    published(tmp_path / "small", 10, count=100)
    refusal(lambda: load_corrupted(tmp_path / "small", "cifar10", ("fog",)), "is not CIFAR-10-C")
    published(tmp_path / "hundred", 100)
    refusal(lambda: load_corrupted(tmp_path / "hundred", "cifar10", ("fog",)), "is not CIFAR-10-C: ", " 10 classes")
    assert load_corrupted(tmp_path / "small", "svhn", ("fog",)).name == "svhn-C"


def test_the_command(tmp_path, monkeypatch, made):
    monkeypatch.chdir(tmp_path)
    words = ("data", "corrupt", "--dataset", "digits", "--out", "C", "--limit", 7, "--seed", 3)
    assert bench(*words, "--corruptions", "fog, contrast,saturate")[0] == 0
    assert contents(tmp_path / "C") == contents(made)
    code, output = bench(*words, "--corruptions", "fog,contrast,pixelate")
    assert (code, "C: 1 corruptions written, 2 kept" in output) == (0, True)
    assert "Did you mean 'fog'?" in refused(*words, "--corruptions", "fgo")
    assert "different seed" in refused(*words, "--seed", 1)
