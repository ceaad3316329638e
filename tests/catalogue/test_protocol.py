"""The default recipe's numbers are the paper's; datasets and the command line override them by name."""

import pytest

from bench.catalogue.recipes import protocol_for
from bench.errors import BenchError

CIFAR = {"linf": "8/255", "l2": "128/255", "l1": "2000/255"}


def make(dataset="cifar10", epsilons=CIFAR, crop_padding=4, flip=True, **given):
    return protocol_for(dataset, epsilons, crop_padding, flip, given)


def test_defaults_are_the_papers():
    protocol = make()
    assert (protocol.epochs, protocol.batch_size, protocol.momentum, protocol.weight_decay) == (110, 128, 0.9, 5e-4)
    assert not protocol.nesterov
    assert protocol.threat.radius == 8 / 255
    assert protocol.attack_steps == 10
    assert protocol.step_size == pytest.approx(2 / 255, rel=1e-15)


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0.1), (99, 0.1), (100, 0.01), (104, 0.01), (105, 0.001), (109, 0.001)])
def test_the_rate_falls_after_100_and_105_full_epochs(epoch, rate):
    assert [make().learning_rate_at(7 * epoch + step, 7) for step in range(7)] == [pytest.approx(rate)] * 7


def test_svhn_steps_by_one_level_and_is_not_flipped():
    protocol = make("svhn", flip=False)
    assert protocol.step_size == pytest.approx(1 / 255, rel=1e-15)
    assert not protocol.flip


def test_mnist_is_the_papers_figure_2():
    protocol = make("mnist", {"linf": "0.3"}, 0, False)
    assert (protocol.attack_steps, protocol.threat.radius) == (40, 0.3)
    assert protocol.step_size == pytest.approx(0.01, rel=1e-12)


def test_epochs_alone_scale_the_milestones():
    assert make(epochs="11").milestones == (10, 10)
    assert make(epochs="30").milestones == (27, 29)
    assert make(epochs="30", milestones="20,25").milestones == (20, 25)
    assert make("digits", {"linf": "0.15"}, 0, False).milestones == (15, 18)
    assert make("digits", {"linf": "0.15"}, 0, False, epochs="40").milestones == (30, 36)


def test_another_norm_takes_the_datasets_radius():
    assert make(norm="l2").threat.epsilon == "128/255"
    assert make(norm="l2", epsilon="0.5").threat.epsilon == "0.5"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": "0"}, "epochs=0 is out of range: it must be 1 or more"),
        ({"learning_rate": "-1"}, "above 0"),
        ({"epsilon": "-8/255"}, "below 0"),
        ({"epsilon": "eight"}, "not a number"),
        ({"attack_step": "fast"}, "not a length"),
        ({"attack_step": "2"}, "attack_step=2 is longer than a pixel's whole range, 1: give 2/255 or eps/4"),
        ({"norm": "l3"}, "not one of linf, l2, l1"),
        ({"epoch": "3"}, "Did you mean 'epochs'"),
    ],
)
def test_bad_settings_are_one_line(given, message):
    with pytest.raises(BenchError, match=message) as caught:
        make(**given)
    assert "\n" not in str(caught.value)
