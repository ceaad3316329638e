"""Fixtures: one thread (small models), the command, a tiny dataset as a file, a model trained on digits, a browser.

Also which files are the numeric part of the suite: what another processor's rounding could change.
"""

import numpy as np
import pytest
import torch

from tests.support import command

NUMERIC = (
    *("apgd", "attacks", "augmentation", "autoattack", "backbones", "deepfool", "engine", "every_defense", "fab"),
    *("attacked_weights", "averaged_weights", "features", "folding", "growing_radius", "label_smoothing", "metrics"),
    *("mi_fgsm", "minimum_norm", "not_finite", "precision", "probes", "repeating", "square", "suites", "threat_model"),
    *("training_speed", "trajectories", "trust", "verification", "weight_perturbation", "winograd"),
)
"""Files that `make test-numeric` runs, as test_NAME.py: those that compute with images, weights and gradients. The
goldens of a defense, test_goldens_NAME.py, are among them without being named."""


def pytest_collection_modifyitems(items):
    for item in items:
        name = item.path.stem.removeprefix("test_")
        if name in NUMERIC or name.startswith("goldens_"):
            item.add_marker("numeric")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def plugins_of_this_test(monkeypatch):
    """What a test adds is gone after it."""
    from bench.catalogue import plugins

    monkeypatch.setattr(plugins, "added", dict(plugins.added))


@pytest.fixture(name="bench")
def bench_command(tmp_path, monkeypatch):
    """Runs `bench ARGUMENTS` in an empty folder; returns (exit code, output)."""
    monkeypatch.chdir(tmp_path)
    return command.bench


@pytest.fixture(scope="session")
def blobs(tmp_path_factory):
    """`npz:PATH` of a three-class problem of 8x8 images: which third of the image is bright."""
    rng = np.random.default_rng(0)

    def make(count):
        labels = np.arange(count) % 3
        images = rng.integers(40, 120, size=(count, 8, 8))
        for image, label in zip(images, labels, strict=True):
            image[:, 2 * label : 2 * label + 3] += 100
        return images.astype(np.uint8), labels.astype(np.int64)

    (x_train, y_train), (x_test, y_test) = make(96), make(60)
    path = tmp_path_factory.mktemp("data") / "blobs.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return f"npz:{path}"


@pytest.fixture
def small_budget(monkeypatch):
    """The attacks of pyautoattack with few iterations, whoever runs them."""
    from pyautoattack.autopgd_base import APGDAttack
    from pyautoattack.fab_pt import FABAttack_PT
    from pyautoattack.square import SquareAttack

    def limit(attack, name, field, budget):
        published = getattr(attack, name)

        def limited(self, *arguments, **options):
            setattr(self, field, budget)
            return published(self, *arguments, **options)

        monkeypatch.setattr(attack, name, limited)

    limit(APGDAttack, "init_hyperparam", "n_iter", 10)
    limit(APGDAttack, "init_hyperparam", "n_iter_orig", 10)  # l1 divides this one among three radii
    limit(FABAttack_PT, "attack_single_run", "n_iter", 5)
    limit(SquareAttack, "perturb", "n_queries", 30)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """A headless browser; one for all tests."""
    from tests.support.chromium import BROWSER, DRIVER, Chromium, SessionError

    if BROWSER is None or DRIVER is None:
        pytest.skip("no Chromium with chromedriver is installed (Debian: apt install chromium chromium-driver)")
    try:
        browser = Chromium(tmp_path_factory.mktemp("profile"))
    except SessionError as error:
        pytest.skip(f"{BROWSER} and {DRIVER} do not fit each other: {error}")
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A run folder: AT on digits for three epochs."""
    from bench.training.request import TrainingRequest
    from bench.training.train import train

    request = TrainingRequest("at", "digits", protocol={"epochs": 3}, runs=tmp_path_factory.mktemp("runs"))
    return train(request, quiet=True)
