"""The suites: the paper's budgets exactly, every cell on a small model, and outcomes worked out beside the harness."""

import dataclasses
import itertools
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from bench.attacks import autoattack
from bench.attacks.apgd_ce import APGDCE
from bench.attacks.apgd_t import APGDT
from bench.attacks.fab import FAB
from bench.attacks.square import Square
from bench.catalogue.names import suite_names
from bench.catalogue.plugins import make_attack
from bench.catalogue.suites import AttackCell, Suite, exact_share, load_suite
from bench.data.datasets import load_dataset
from bench.data.splits import Split
from bench.engine.groups import plan
from bench.engine.run import run_suite
from bench.engine.target import Target
from bench.errors import BenchError
from bench.interfaces import Draws, Problem, ThreatModel
from bench.models.checkpoints import load_checkpoint
from bench.trust.evidence import surely_more

CIFAR = {"linf": "8/255", "l2": "128/255", "l1": "2000/255"}
SAMPLES = 24


def groups_of(suite):
    return plan(suite.cells, {cell.label: make_attack(cell.attack, cell.parameters) for cell in suite.cells})


def suite_of(*cells):
    return Suite("test", 1, "", cells, {})


# ------------------------------------------------------------------------------------------- as written


@pytest.mark.parametrize("name", suite_names())
def test_a_suite_is_named_like_its_file_and_claims_no_radius_in_its_columns(name):
    suite = load_suite(name)
    assert suite.name == name
    assert suite.version >= 1
    assert suite.about
    for label in (*(cell.label for cell in suite.cells), *suite.worst_of):
        assert "255" not in label
        assert label.isprintable()


def budgets(name, epsilons):
    """Per label: radius as text, step as a fraction of 1/255 (None: no such parameter), steps."""
    found = {}
    for cell in load_suite(name).resolve(epsilons, {}).cells:
        step = cell.parameters.get("step_size")
        length = round(255 * ThreatModel(cell.norm, cell.epsilon).length(step), 9) if step else None
        found[cell.label] = (cell.epsilon, length, cell.parameters.get("steps"))
    return found


PUBLISHED = {
    "table1": {
        "AutoAttack": ("8/255", None, None),
        "PGD-20": ("8/255", 1, 20),
        "PGD l1": ("2000/255", 50, 100),
        "PGD l2": ("128/255", 16, 20),
    },
    "table2": {
        "FGSM": ("8/255", None, None),
        "PGD-20": ("8/255", 1, 20),
        "PGD-100": ("8/255", 1, 100),
        "C&W-30": ("8/255", 1, 30),
        "AutoAttack": ("8/255", None, None),
    },
    "table2-no-start": {
        "FGSM": ("8/255", None, None),
        "PGD-20": ("8/255", 0.8, 20),
        "PGD-100": ("8/255", 0.8, 100),
        "C&W-30": ("8/255", 0.8, 30),
        "AutoAttack": ("8/255", None, None),
    },
    "table3": {
        "PGD-20 0.25 eps": ("2/255", 1, 20),
        "AutoAttack 0.25 eps": ("2/255", None, None),
        "PGD-20 0.5 eps": ("4/255", 1, 20),
        "AutoAttack 0.5 eps": ("4/255", None, None),
        "PGD-20 0.75 eps": ("6/255", 1, 20),
        "AutoAttack 0.75 eps": ("6/255", None, None),
    },
    "table6": {f"PGD-{steps}": ("8/255", 1, steps) for steps in (20, 40, 100, 250, 500)},
    "table7": {
        label: ("8/255", 0.5, 40)
        for label in ("PGD-40 (1 start)", "PGD-40 (5 starts)", "PGD-40 (10 starts)", "PGD-40 (20 starts)")
    },
    "table8": {"PGD-20": ("8/255", 1, 20), "PGD-20 adaptive": ("8/255", 1, 20)},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_on_cifar_a_tables_budgets_are_the_published_ones(name):
    assert budgets(name, CIFAR) == PUBLISHED[name]


def test_on_cifar_the_radii_of_figure_4_are_whole_levels_and_its_steps_follow_them():
    found = budgets("figure4", CIFAR)
    levels = [1, 2, 4, 6, 8, 10, 12, 16, 20, 24, 32]
    fgsm = [budget for label, budget in found.items() if label.startswith("FGSM")]
    pgd = [budget for label, budget in found.items() if label.startswith("PGD-20")]
    assert fgsm == [(f"{level}/255", None, None) for level in levels]
    assert pgd == [(f"{level}/255", 2.5 * level / 20, 20) for level in levels]


def test_starts_confidence_losses_and_objectives_are_as_the_tables_say():
    for name, start in (("table2", True), ("table2-no-start", False)):
        attacks = {cell.label: make_attack(cell.attack, cell.parameters) for cell in load_suite(name).cells}
        assert {attacks[label].random_start for label in ("PGD-20", "PGD-100", "C&W-30")} == {start}
        assert attacks["C&W-30"].confidence == 50
        assert load_suite(name).worst_of == {"Ensemble": ("FGSM", "PGD-20", "PGD-100", "C&W-30")}
    assert all(cell.measure_loss for cell in load_suite("table6").cells)
    assert [cell.parameters["restarts"] for cell in load_suite("table7").cells] == [1, 5, 10, 20]
    assert [cell.objective for cell in load_suite("table8").cells] == ["default", "adaptive"]


def test_cells_that_differ_in_length_only_are_one_search():
    digits = {"linf": "0.15"}
    for name, cells in (("table6", 5), ("table7", 4)):
        (group,) = groups_of(load_suite(name).resolve(digits, {}))
        assert len(group.cells) == cells
    for name, count in (("figure4", 22), ("table8", 2), ("linf", 3), ("table2-no-start", 4)):
        assert len(groups_of(load_suite(name).resolve(digits, {}))) == count


def test_full_holds_no_attack_twice():
    cells = load_suite("full").resolve(CIFAR, {}).cells
    assert {cell.label for cell in cells} >= {"FGSM", "PGD-20", "PGD-100", "C&W-30", "PGD l1", "PGD l2", "AutoAttack"}
    unlabelled = [dataclasses.replace(cell, label="") for cell in cells]
    assert not [cell for place, cell in enumerate(unlabelled) if cell in unlabelled[:place]]


# ------------------------------------------------------------------------------------------------- radii


@pytest.mark.parametrize(
    ("text", "base", "expected"),
    [
        ("0.25*eps", "8/255", "2/255"),
        ("eps/4", "8/255", "2/255"),
        ("3*eps/4", "8/255", "6/255"),
        ("0.125 * eps", "8/255", "1/255"),
        ("4*eps", "8/255", "32/255"),
        ("1.5*eps", "2000/255", "3000/255"),
        ("eps/3", "8/255", "8/765"),
        ("0.25*eps", "0.15", "0.0375"),
        ("0.125*eps", "0.15", "0.01875"),
        ("4*eps", "0.3", "1.2"),
        ("5*eps", "2", "10"),
        ("eps/3", "0.1", "1/30"),
        ("0*eps", "8/255", "0/255"),
        ("1*eps", "0.30", "0.30"),
        (None, "16/510", "16/510"),
        ("3/255", "0.15", "3/255"),
    ],
)
def test_a_share_of_a_radius_is_exact_and_written_like_the_radius(text, base, expected):
    suite = suite_of(AttackCell("A", "fgsm", epsilon=text))
    assert suite.resolve({"linf": base}, {}).cells[0].epsilon == expected
    assert suite.resolve({"linf": "0.9"}, {"linf": base}).cells[0].epsilon == expected
    factor = Fraction(expected) / Fraction(base)
    assert Fraction(exact_share(factor, base)) == Fraction(expected)


WAY_OUT = ("8/255", "0.15")


@pytest.mark.parametrize(
    ("norm", "epsilon", "epsilons", "words"),
    [
        ("l1", None, {}, ("l1", "--eps l1=")),
        ("l1", "eps/2", {}, ("l1", "--eps l1=")),
        ("linf", "eps/0", CIFAR, ("'eps/0'", *WAY_OUT)),
        ("linf", "-1*eps", CIFAR, ("'-1*eps'", *WAY_OUT)),
        ("linf", "eps/2", {"linf": "wide"}, ("'wide'", *WAY_OUT)),
        ("l3", "0.1", CIFAR, ("'l3'", "linf, l2, l1")),
    ],
)
def test_a_radius_that_cannot_be_resolved_is_a_one_line_error(norm, epsilon, epsilons, words):
    with pytest.raises(BenchError) as error:
        suite_of(AttackCell("A", "fgsm", norm, epsilon)).resolve(epsilons, {})
    assert [word for word in words if word not in str(error.value)] == []
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------- files


@pytest.fixture
def written(tmp_path):
    def write(content, name="mine.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def test_a_file_of_ones_own_adds_to_a_suite(written):
    own = {"label": "FGSM half", "attack": "fgsm", "epsilon": "eps/2"}
    same = {"label": "once more", "attack": "fgsm"}
    path = written({"name": "mine", "version": 3, "include": ["quick"], "cells": [own, same]})
    suite = load_suite(path).resolve(CIFAR, {"linf": "4/255"})
    assert (suite.name, suite.version) == ("mine", 3)
    # `same` is FGSM of `quick` under another label: it is not run again.
    assert [(cell.label, cell.epsilon) for cell in suite.cells] == [
        ("FGSM", "4/255"),
        ("PGD-20", "4/255"),
        ("FGSM half", "2/255"),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"name": "a", "version": 1, "include": ["quik"]}, "Did you mean 'quick'?"),
        (
            {"name": "a", "version": 1, "include": ["quick"], "cells": [{"label": "FGSM", "attack": "pgd"}]},
            "['FGSM', 'PGD-20', 'FGSM'] must differ",
        ),
        (
            {"name": "a", "version": 1, "include": ["quick"], "worst_of": {"Both": ["FGSM", "PGD-10"]}},
            "worst_of must name them",
        ),
        ({"name": "a", "version": 1, "cells": [{"label": "A", "atack": "pgd"}]}, "is not a suite: TypeError"),
        ({"name": "a"}, "is not a suite: KeyError: 'version'"),
        ("{", "is not a suite: JSONDecodeError"),
        ("[1]", "is not a suite: AttributeError"),
    ],
)
def test_a_file_that_is_no_suite_is_a_one_line_error(written, content, words):
    with pytest.raises(BenchError) as error:
        load_suite(written(content))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_suites_that_do_not_exist_or_include_themselves_are_one_line_errors(written, tmp_path):
    with pytest.raises(BenchError, match=r"'tabel1'.*'table1'.*autoattack, "):
        load_suite("tabel1")
    with pytest.raises(BenchError, match=r"none\.json .*FileNotFoundError"):
        load_suite(str(tmp_path / "none.json"))
    circle = str(tmp_path / "mine.json")
    written({"name": "a", "version": 1, "include": [circle]})
    with pytest.raises(BenchError, match=r"mine.json' includes itself"):
        load_suite(circle)


# ---------------------------------------------------------------------------------------------- outcomes


def margin_objective(model, images, labels):
    """An adaptive objective that plain PGD has too, as a loss."""

    def objective(view, perturbed):
        logits = view(perturbed)
        true = logits.gather(1, labels[:, None]).squeeze(1)
        rival = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        return -(true - rival).clamp_min(0)

    return objective


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", Path())


@pytest.fixture(scope="module")
def target(digits_run, digits):
    model = load_checkpoint(digits_run).build()
    return Target(model, digits.test.take(SAMPLES), seed=5, objectives={"adaptive": margin_objective})


def unlabelled(cell):
    return json.dumps(dataclasses.asdict(dataclasses.replace(cell, label="")), sort_keys=True)


@pytest.fixture(autouse=True, scope="module")
def brief_autoattack():
    """Few steps of AutoAttack and APGD: here it only matters which samples they are shown, within which radius."""
    stages = (APGDCE(steps=6), APGDT(steps=5, targets=2), FAB(steps=4, targets=2), Square(queries=25))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoattack, "standard", lambda norm: stages)
        yield


@pytest.fixture(scope="module")
def everything(target, digits):
    """The outcome of every cell of every suite, by what it is but for its label: each is run once, all in one suite."""
    suites = [load_suite(name).resolve(digits.epsilons, {}) for name in suite_names()]
    cells = {unlabelled(cell): cell for suite in suites for cell in suite.cells}
    numbered = [dataclasses.replace(cell, label=str(number)) for number, cell in enumerate(cells.values())]
    outcome = run_suite(target, suite_of(*numbered))
    assert {finding["severity"] for finding in outcome.findings} == {"passed"}
    return dict(zip(cells, outcome.attacks.values(), strict=True))


@pytest.fixture
def outcomes(everything, digits):
    """Records of a suite, by label."""

    def look_up(name):
        suite = load_suite(name).resolve(digits.epsilons, {})
        return {cell.label: everything[unlabelled(cell)] for cell in suite.cells}

    return look_up


def broken(record, target):
    return record.prediction != target.split.labels.numpy()


def clean_wrong(target):
    return (target.judge(target.split.images(slice(None))).argmax(1) != target.split.labels).numpy()


@pytest.mark.parametrize("name", suite_names())
def test_a_suite_alone_has_the_outcomes_it_has_among_all_others(name, outcomes, target, digits):
    suite = load_suite(name).resolve(digits.epsilons, {})
    alone, together = run_suite(target, suite), outcomes(name)
    assert list(alone.attacks) == list(together) == [cell.label for cell in suite.cells]
    for cell, record in zip(suite.cells, alone.attacks.values(), strict=True):
        assert (record.epsilon, record.norm, record.attack) == (cell.epsilon, cell.norm, cell.attack)
        assert (record.prediction == together[cell.label].prediction).all()
        np.testing.assert_allclose(record.distance, together[cell.label].distance, rtol=0, atol=1e-6)
        assert (record.distance <= ThreatModel(record.norm, record.epsilon).radius + 1e-6).all()


def test_autoattack_of_table_2(outcomes, target):
    table = outcomes("table2")
    wrong = broken(table["AutoAttack"], target)
    assert ((table["AutoAttack"].stage > 0) == (wrong & ~clean_wrong(target))).all()
    assert not surely_more(broken(table["PGD-100"], target), wrong, 0.0)


def test_the_radii_of_table_3_part_the_samples_of_a_linear_model_by_distance(digits):
    # The nearest boundary of a linear model is gap / ||difference of weights||_1 away, if no pixel meets the box first.
    weight = torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10, bias=False))
    model[1].weight.data = weight
    pixels = (32 + 11 * digits.test.pixels).to(torch.uint8)
    images = Split(pixels, digits.test.labels).images(slice(None))
    logits = model(images).detach()
    labels = logits.argmax(1)
    reach = torch.linalg.vector_norm(weight[:, None] - weight, ord=1, dim=2)[labels]
    gaps = logits.gather(1, labels[:, None]) - logits
    distance = (gaps / reach).scatter(1, labels[:, None], torch.inf).amin(1)
    # Two samples between each radius and the next, none within a tenth of either.
    ends = [0.0, 0.02, 0.04, 0.06]
    between = [((distance > 1.1 * low) & (distance < 0.9 * high)) for low, high in itertools.pairwise(ends)]
    chosen = torch.cat([rows.nonzero().flatten()[:2] for rows in between])
    assert len(chosen) == 6
    target = Target(model, Split(pixels[chosen], labels[chosen]))
    attacks = run_suite(target, load_suite("table3").resolve({}, {"linf": "0.08"})).attacks
    for record in attacks.values():
        assert broken(record, target).tolist() == (distance[chosen] < float(record.epsilon)).tolist()


def test_fgsm_of_figure_4_is_one_step_of_the_gradients_sign(outcomes, target):
    images, labels = target.samples(torch.arange(SAMPLES))
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(target.model(leaf), labels, reduction="sum"), leaf)
    records = [record for label, record in outcomes("figure4").items() if label.startswith("FGSM")]
    shares = [0.125, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3, 4]
    accuracies = []
    for share, record in zip(shares, records, strict=True):
        moved = (images + 0.15 * share * gradient.sign()).clamp(0, 1)
        expected = torch.where(
            torch.from_numpy(clean_wrong(target)), target.judge(images).argmax(1), target.judge(moved).argmax(1)
        )
        assert record.prediction.tolist() == expected.tolist()
        accuracies.append(1 - broken(record, target).mean())
    assert len(set(accuracies)) > 3


def test_more_steps_and_more_starts_break_at_least_the_same_samples(outcomes, target):
    for name in ("table6", "table7", "linf", "table2", "table2-no-start"):
        records = [record for label, record in outcomes(name).items() if label.startswith("PGD")]
        for shorter, longer in itertools.pairwise(records):
            assert (broken(shorter, target) <= broken(longer, target)).all()


@pytest.mark.parametrize(
    ("name", "label"), [("table6", "PGD-20"), ("table6", "PGD-100"), ("table7", "PGD-40 (5 starts)")]
)
def test_a_cell_of_a_shared_search_has_the_outcome_of_running_it_alone(name, label, outcomes, target, digits):
    cells = load_suite(name).resolve(digits.epsilons, {}).cells
    (cell,) = (cell for cell in cells if cell.label == label)
    alone, shared = run_suite(target, suite_of(cell)).attacks[label], outcomes(name)[label]
    assert (alone.prediction == shared.prediction).all()
    if name == "table6":
        np.testing.assert_allclose(alone.loss, shared.loss, rtol=1e-5)


@pytest.mark.parametrize("steps", [20, 40])
def test_the_losses_of_table_6_are_those_of_the_last_iterates(steps, outcomes, target):
    images, labels = target.samples(torch.arange(SAMPLES))
    draws = Draws(target.seed, "pgd/linf", np.arange(SAMPLES))
    problem = Problem(target.model, images, labels, ThreatModel("linf", "0.15"), draws)
    perturbed = make_attack("pgd", {"steps": steps, "step_size": "0.01875"}).perturb(problem)
    expected = functional.cross_entropy(target.judge(perturbed), labels, reduction="none")
    record = outcomes("table6")[f"PGD-{steps}"]
    np.testing.assert_allclose(record.loss, expected.numpy(), rtol=1e-4, atol=1e-6)
    assert clean_wrong(target).any()
    assert (record.final_prediction == target.judge(perturbed).argmax(1).numpy()).all()


def test_the_adaptive_column_of_table_8_ascends_the_given_objective(outcomes, target):
    table = outcomes("table8")
    assert (table["PGD-20"].objective, table["PGD-20 adaptive"].objective) == ("default", "adaptive")
    parameters = {"steps": 20, "step_size": "eps/8", "loss": "margin"}
    margin = run_suite(target, suite_of(AttackCell("A", "pgd", epsilon="0.15", parameters=parameters))).attacks["A"]
    assert (table["PGD-20 adaptive"].prediction == margin.prediction).all()
    assert (margin.prediction != table["PGD-20"].prediction).any()


def test_an_objective_that_a_model_lacks_is_a_one_line_error(target, digits):
    bare = dataclasses.replace(target, objectives={})
    with pytest.raises(BenchError, match=r"PGD-20 adaptive .*objective 'adaptive'"):
        run_suite(bare, load_suite("table8").resolve(digits.epsilons, {}))
