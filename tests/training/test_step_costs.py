"""The passes that benchmarks/step_costs.py counts are those that each method's description says."""

import pytest
import torch

from bench.interfaces import Backbone
from benchmarks.step_costs import BATCHES, Epochs, counted, main, table

STEPS = 10
BATCH = 2


@pytest.mark.parametrize(
    ("name", "forward", "backward"),
    [
        # Crafting, and the pass that is trained on; st has this one alone.
        ("st", 1, 1),
        ("at", STEPS + 1, STEPS + 1),
        ("fgsm-rs", 1 + 1, 1 + 1),
        # The clean prediction, and a train-mode pass of clean images more.
        ("trades", 1 + STEPS + 2, STEPS + 2),
        # Every image on the way, the start and the last included, is classified once more.
        ("gairat", STEPS + (STEPS + 1) + 1, STEPS + 1),
        # The pass that crafts is trained on as well: a gradient comes back to it twice.
        ("fgsm-pgi", 2, 2 + 1),
        # As many, and once an epoch ten grey images.
        ("liet", 2 + 10 / (BATCHES * BATCH), 3 + 10 / (BATCHES * BATCH)),
        # Two teachers look at the perturbed images.
        ("kd-swa", STEPS + 1 + 2, STEPS + 1),
    ],
)
def test_passes_are_those_of_the_method(name, forward, backward):
    assert Epochs(name, "cnn-small", BATCH).passes() == pytest.approx((forward, backward))


def test_counting_ends_with_its_block():
    class Flat(Backbone):
        feature_dim = map_channels = 1

        def feature_map(self, images):
            return 2 * images

    images, flat, before = torch.ones(3, 1, 1, 1, requires_grad=True), Flat(), Flat.feature_map
    with counted(Flat) as found:
        flat(images).sum().backward()
        flat(images.detach())
    flat(images).sum().backward()
    assert dict(found) == {"forward": 6, "backward": 3}
    assert Flat.feature_map is before


def test_the_table_sorts_by_family_and_cost(capsys):
    passes = {"at": (11, 11), "n-fgsm": (2, 2), "fgsm-rs": (2, 2.5)}
    assert table(passes, {"at": 1.0, "n-fgsm": 0.25, "fgsm-rs": 0.2}).splitlines()[2:] == [
        "| multi-step | at | 11.00 | 11.00 | 1.00 |",
        "| single-step | fgsm-rs | 2.00 | 2.50 | 0.20 |",
        "| single-step | n-fgsm | 2.00 | 2.00 | 0.25 |",
        "| **single-step** | 2 |  |  | **0.20 to 0.25** |",
    ]
    main(["--only", "st", "--batch", "2", "--rounds", "1", "--backbone", "cnn-small"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "cnn-small, batches of 2, 1 rounds"
    assert "| multi-step | at | 11.00 | 11.00 | 1.00 |" in shown
    assert any(line.startswith("| no adversarial training | st | 1.00 | 1.00 | 0.") for line in shown)
