"""Checks on stored outcomes, against results made by hand."""

import dataclasses
import re
from bisect import bisect_left

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import stats

from bench.cli.trust import command
from bench.errors import BenchError
from bench.leaderboard.tables.build import build_table
from bench.results.file import AttackRecord, EvaluationResult, read_result, write_result
from bench.results.findings import CHECKS, SEVERITIES, finding
from bench.trust.attack_comparisons import outcome_findings
from bench.trust.evidence import surely_above, surely_more
from bench.trust.outcome_checks import file_findings, reassessed
from bench.trust.report import concluded, worst_of_each
from tests import ROOT

COUNT = 1000
LABEL = (np.arange(COUNT) % 10).astype(np.int16)


def record(label, attack, broken, epsilon="8/255", norm="linf", objective="default", stage=None, **parameters):
    """Breaks the samples of an index; the rest stand."""
    prediction = LABEL.copy()
    prediction[broken] = (prediction[broken] + 1) % 10
    distance = np.zeros(COUNT, dtype=np.float32)
    distance[broken] = np.float32(8 / 255)
    return AttackRecord(
        label, attack, parameters, norm, epsilon, objective, prediction, None, distance, 1.0, stage=stage
    )


def result(*records, clean=LABEL, **run):
    facts = {"dataset": "d", "num_classes": 10, "checkpoint_digest": "c", **run}
    suite = {"name": "s", "version": 1, "cells": [{"label": one.label} for one in records]}
    return EvaluationResult(facts, suite, LABEL, np.arange(COUNT), clean, {one.label: one for one in records})


def check(name, *records, **options):
    (found,) = [one for one in file_findings(result(*records, **options)) if one["name"] == name]
    return found["severity"], found["value"]


def first(count):
    return np.arange(count)


def test_every_check_says_what_it_means_and_what_to_do():
    assert all(check.meaning and check.advice for check in CHECKS.values())
    findings = file_findings(result(record("FGSM", "fgsm", first(100))))
    for one in findings:
        assert set(one) == {"name", "severity", "message", "value", "threshold", "meaning", "advice"}
        assert one["severity"] in SEVERITIES
        assert (one["meaning"], one["advice"]) == (CHECKS[one["name"]].meaning, CHECKS[one["name"]].advice)


@pytest.mark.parametrize(("count", "total", "sure"), [(1, 64, False), (2, 64, True), (4, 1000, False), (6, 1000, True)])
def test_a_share_is_judged_by_the_lower_end_of_its_interval(count, total, sure):
    # One-sided Clopper-Pearson at 95 %: 0.00080, 0.0056, 0.0014 and 0.0026.
    assert surely_above(count, total, 0.002) is sure
    assert not surely_above(0, 0, 0.002)


def paired_lower_end(count, against, total):
    """The limit that `surely_above` compares with, from the tails of the binomial distribution."""
    first, second = count / total, against / total
    below = first - stats.binomtest(count, total, alternative="greater").proportion_ci(0.95, "exact").low
    above = stats.binomtest(against, total, alternative="less").proportion_ci(0.95, "exact").high - second
    correlation = -np.sqrt(first * second / ((1 - first) * (1 - second)))
    return first - second - np.sqrt(below**2 + above**2 - 2 * correlation * below * above)


def test_a_difference_is_judged_by_the_lower_end_of_its_interval():
    # All of 20 and none of 20: both limits are u = 1 - 0.05^(1/20) = 0.13911 away, the lower end is 1 - sqrt(2) u.
    assert surely_above(20, 20, 0.8032, against=0)
    assert not surely_above(20, 20, 0.8034, against=0)
    for count, against, total in ((8, 0, 64), (9, 3, 64), (80, 12, 1000), (5, 5, 10)):
        end = paired_lower_end(count, against, total)
        assert surely_above(count, total, end - 1e-9, against)
        assert not surely_above(count, total, end + 1e-9, against)
    assert not surely_above(1, 1, 0.0, against=0)
    assert not surely_above(0, 0, 0.0, against=0)
    one, other = np.arange(64) < 9, np.arange(64) >= 61
    assert surely_more(one, other, paired_lower_end(9, 3, 64) - 1e-9)
    assert not surely_more(torch.from_numpy(one), torch.from_numpy(other), paired_lower_end(9, 3, 64) + 1e-9)


def alarm_rate(total, share, second):
    """Probability that `surely_above` speaks where the difference of two shares is `share` exactly; by enumeration."""
    first, rate = second + share, 0.0
    for against in range(int(stats.binom.ppf(1 - 1e-9, total, second)) + 1):
        counts = range(total - against + 1)
        least = bisect_left(counts, True, key=lambda count: surely_above(count, total, share, against))
        rest = stats.binom(total - against, first / (1 - second))
        rate += stats.binom.pmf(against, total, second) * rest.sf(least - 1)
    return rate


@pytest.mark.parametrize(("total", "second"), [(20, 0.0), (20, 0.2), (64, 0.0), (64, 0.02), (64, 0.3), (150, 0.01)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.05])
def test_a_difference_at_its_limit_is_spoken_of_once_in_twenty_at_most(total, second, share):
    assert alarm_rate(total, share, second) <= 0.05


def few(total, **broken):
    """Cross-entropy and margin attacks on `total` samples, by the samples that they break."""
    label = np.zeros(total, dtype=np.int16)
    attacks = {}
    for label_of, attack in (("PGD", "pgd"), ("C&W", "cw")):
        prediction = label.copy()
        prediction[broken[attack]] = 1
        distance = np.zeros(total, dtype=np.float32)
        attacks[label_of] = AttackRecord(label_of, attack, {}, "linf", "0", "default", prediction, None, distance, 1.0)
    return EvaluationResult({}, {}, label, np.arange(total), label, attacks)


@pytest.mark.parametrize("shares", [(0.04, 0.0), (0.05, 0.01), (0.07, 0.03)])
def test_a_gap_of_four_points_on_64_images_is_rarely_called_more_than_five(shares):
    counts = np.random.default_rng(0).multinomial(64, [*shares, 1 - sum(shares)], size=2000)
    drawn, times = np.unique(counts[:, :2], axis=0, return_counts=True)
    alarms = 0
    for (margin, entropy), often in zip(drawn, times, strict=True):
        outcomes = few(64, cw=np.arange(margin), pgd=np.arange(margin, margin + entropy))
        (found,) = [one for one in outcome_findings(outcomes, 64) if one["name"] == "loss-gap"]
        alarms += often * (found["severity"] == "warning")
    # One in twenty is what a gap of five points may raise; the sign test with a point estimate raised one in eight.
    assert alarms <= 0.05 * 2000


@pytest.mark.parametrize("defense", ["at", "trades", "adv-dpnp", "fsr", "dio"])
def test_committed_sound_outcomes_raise_no_alarm_on_small_parts(defense):
    """Twenty draws of 150 of the 1,000 images; without intervals adv-dpnp raised eight alarms, fsr six, at four."""
    board = ROOT / "leaderboard" / "boards" / "cifar10-linf-full-v3-first1000"
    whole = read_result(board / f"{defense}-seed-0.h5")
    alarms = 0
    for draw in range(20):
        rows = np.sort(np.random.default_rng(draw).choice(1000, 150, replace=False))
        findings = file_findings(part(whole, rows))
        alarms += any(one["severity"] in ("warning", "error") for one in findings)
    assert alarms <= 1


def part(whole, rows):
    """The result on some of its samples."""

    def taken(record):
        arrays = {name: value[rows] for name, value in vars(record).items() if isinstance(value, np.ndarray)}
        return dataclasses.replace(record, **arrays)

    samples = {name: getattr(whole, name)[rows] for name in ("label", "index", "clean_prediction")}
    attacks = {label: taken(one) for label, one in whole.attacks.items()}
    return dataclasses.replace(whole, attacks=attacks, **samples)


def test_one_step_that_finds_more_than_twenty():
    steps = {"steps": 20}
    weak = record("PGD-20", "pgd", first(100), **steps)
    assert check("single-step", record("FGSM", "fgsm", first(100)), weak) == ("passed", 0.0)
    assert check("single-step", record("FGSM", "fgsm", first(104)), weak) == ("passed", 0.004)
    assert check("single-step", record("FGSM", "fgsm", first(120)), weak) == ("warning", 0.02)
    # Another loss, or another radius, is no comparison.
    names = [
        one["name"] for one in file_findings(result(record("FGSM", "fgsm", first(120)), record("C&W", "cw", first(9))))
    ]
    assert "single-step" not in names


def test_a_search_that_had_not_converged():
    short = record("PGD-20", "pgd", first(100), steps=20)
    long = record("PGD-100", "pgd", first(130), steps=100)
    assert check("more-steps", short, long) == ("warning", 0.03)
    # What another attack breaks anyway does not hang on more steps.
    assert check("more-steps", short, long, record("C&W", "cw", first(128))) == ("passed", 0.002)


def test_larger_radii_break_no_less():
    small = record("PGD 4", "pgd", np.arange(0, 100), epsilon="4/255", step_size="1/255")
    large = record("PGD 8", "pgd", np.arange(20, 300), step_size="2/255")
    assert check("monotone", small, large) == ("warning", 0.02)
    assert check("monotone", small, record("PGD 8", "pgd", first(300), step_size="2/255")) == ("passed", 0.0)


@pytest.mark.parametrize(("more", "severity"), [(15, "passed"), (40, "note"), (80, "warning")])
def test_margin_losses_that_find_more_than_cross_entropy(more, severity):
    entropy, margin = record("PGD", "pgd", first(100)), record("C&W", "cw", first(100 + more))
    assert check("loss-gap", entropy, margin) == (severity, pytest.approx(more / COUNT))
    # The other way round nothing is wrong.
    assert check("loss-gap", record("PGD", "pgd", first(100 + more)), margin)[0] == "passed"


def test_the_norm_with_the_sure_gap_is_named_and_not_the_one_with_the_largest():
    linf = record("PGD", "pgd", first(100)), record("C&W", "cw", first(130))
    l1 = (
        record("PGD l1", "pgd", np.arange(100, 200), epsilon="3", norm="l1"),
        record("C&W l1", "cw", np.r_[100:165, 300:370], epsilon="3", norm="l1"),
    )
    # In l1 70 against 35: the lower end of 3.5 points is 1.8. In linf 30 against 0: that of 3.0 points is 2.1.
    assert check("loss-gap", *l1) == ("passed", pytest.approx(0.035))
    assert check("loss-gap", *l1, *linf) == ("note", pytest.approx(0.03))


def test_attacks_without_gradients_that_find_more():
    pgd, square = record("PGD", "pgd", first(100)), record("Square", "square", first(110))
    assert check("blind-attacks", pgd, square) == ("warning", 0.01)
    assert check("blind-attacks", record("PGD", "pgd", first(110)), square) == ("passed", 0.0)
    transferred = record("PGD from x", "pgd", first(107), source="x")
    assert check("blind-attacks", pgd, transferred) == ("warning", 0.007)
    stage = np.zeros(COUNT, dtype=np.int16)
    stage[:90], stage[90:120] = 1, 4
    cascade = record("AutoAttack", "autoattack", first(120), stage=stage)
    # Of the thirty that its fourth stage broke, PGD broke ten as well.
    assert check("blind-attacks", cascade) == ("warning", 0.03)
    assert check("blind-attacks", pgd, cascade) == ("warning", 0.02)
    assert "blind-attacks" not in [one["name"] for one in file_findings(result(square))]


def test_an_ensemble_is_no_weaker_than_what_it_holds():
    stage = np.zeros(COUNT, dtype=np.int16)
    stage[:100] = 2
    whole = record("AutoAttack", "autoattack", first(100), stage=stage)
    for name in ("apgd-ce", "apgd-t", "fab", "square"):
        assert check("ensemble", whole, record(name, name, first(100))) == ("passed", 0.0)
        # Its draws are not those of the ensemble: four of a thousand may be chance, six are not.
        assert check("ensemble", whole, record(name, name, first(104))) == ("passed", 0.004)
        assert check("ensemble", whole, record(name, name, np.arange(94, 106))) == ("error", 0.006)
    # Another radius, another budget, another attack and images of another model are no members.
    others = [
        record("wide", "fab", first(200), epsilon="16/255"),
        record("long", "fab", first(200), steps=1000),
        record("cw", "cw", first(200)),
        record("from x", "fab", first(200), source="x"),
    ]
    assert "ensemble" not in [one["name"] for one in file_findings(result(whole, *others))]
    # Under l1 the ensemble aims at five classes, not at nine.
    sparse = record("AutoAttack", "autoattack", first(100), norm="l1", stage=stage)
    nine, five = (record("apgd-t", "apgd-t", first(200), norm="l1", targets=targets) for targets in (9, 5))
    assert "ensemble" not in [one["name"] for one in file_findings(result(sparse, nine))]
    assert check("ensemble", sparse, five) == ("error", 0.1)


def test_what_a_stage_broke_does_not_stand():
    stage = np.zeros(COUNT, dtype=np.int16)
    stage[:100] = 1
    assert check("stage", record("AutoAttack", "autoattack", first(100), stage=stage)) == ("passed", 0)
    assert check("stage", record("AutoAttack", "autoattack", np.arange(3, 100), stage=stage)) == ("error", 3)


def test_an_adaptive_attack_is_missed_compared_and_said_to_be_weaker():
    pgd = record("PGD", "pgd", first(100), steps=20)
    assert check("adaptive-attack", pgd) == ("note", None)
    texts = {}
    for count, severity in ((120, "passed"), (99, "passed"), (90, "note")):
        outcome = result(pgd, record("Own", "pgd", first(count), steps=20, objective="adaptive"))
        (found,) = [one for one in file_findings(outcome) if one["name"] == "adaptive-attack"]
        assert found["severity"] == severity
        texts[count] = found["message"]
    assert texts == {
        120: "Own breaks 2.0 points more than PGD",
        99: "Own breaks 0.1 points less than PGD",  # of one image: nothing to speak of
        90: "Own breaks 1.0 points less than PGD",
    }
    of_a_file = record("Own", "pgd", first(120), steps=20, objective="own.py:loss", objective_sha256="a" * 64)
    (found,) = [one for one in file_findings(result(pgd, of_a_file)) if one["name"] == "adaptive-attack"]
    assert found["message"] == texts[120]


def test_where_images_came_from_is_no_parameter_of_the_attack():
    origin = {"source": "x", "source_digest": "a" * 64, "objective_sha256": "b" * 64}
    assert record("PGD", "pgd", first(100), steps=20, **origin).settings == {"steps": 20}


def test_images_beyond_the_radius():
    honest = record("PGD", "pgd", first(10))
    assert check("budget", honest)[0] == "passed"
    far = dataclasses.replace(honest, distance=np.full(COUNT, 8 / 255 + 1e-5, dtype=np.float32))
    assert check("budget", far)[0] == "error"
    l1 = dataclasses.replace(honest, norm="l1", epsilon="2000/255")
    for excess, severity in ((2.5e-5, "passed"), (2e-4, "error")):  # 3,072 roundings of 3e-8 are 9.2e-5
        distance = np.full(COUNT, 2000 / 255 + excess, dtype=np.float32)
        assert check("budget", dataclasses.replace(l1, distance=distance), image_shape=[3, 32, 32])[0] == severity
    unknown = dataclasses.replace(honest, distance=np.full(COUNT, np.nan, dtype=np.float32))
    assert check("budget", unknown)[0] == "error"


def test_a_board_trusts_no_row_that_no_probe_looked_at():
    seen = dataclasses.replace(result(record("PGD", "pgd", first(5)), model="m"), findings=({"severity": "passed"},))
    assert build_table([seen]).rows[0].trust == "unchecked"
    probed = dataclasses.replace(seen, run={**seen.run, "evaluation": {"probes": 64}})
    assert build_table([probed]).rows[0].trust == "passed"


def test_a_malformed_report_is_shown_and_not_believed():
    odd = dataclasses.replace(result(num_classes=-3), findings=({}, {"name": "x", "severity": "fatal"}))
    assert [one.get("severity") for one in reassessed(odd)][:2] == [None, "fatal"]
    assert [one["severity"] for one in file_findings(dataclasses.replace(odd, suite={"cells": [{}]}))][1] == "error"


def test_a_row_at_chance_level_is_an_error_and_not_ranked():
    guessing = np.zeros(COUNT, dtype=np.int16)
    assert check("near-chance", clean=guessing) == ("error", 0.1)
    # Of two classes, 74.5 % right is far from guessing.
    halves = np.where(np.arange(COUNT) < 745, LABEL, LABEL + 1).astype(np.int16)
    assert check("near-chance", clean=halves, num_classes=2) == ("passed", 0.745)
    assert check("near-chance", clean=LABEL) == ("passed", 1.0)
    # 3 of 20 may well be a model that is right on a third: the upper end of that share's interval is 34 %.
    unsure = part(result(clean=np.where(np.arange(COUNT) < 3, LABEL, LABEL + 1).astype(np.int16)), np.arange(20))
    (found,) = [one for one in file_findings(unsure) if one["name"] == "near-chance"]
    assert (found["severity"], found["value"]) == ("note", 0.15)
    outcome = result(clean=guessing, model="lost")
    outcome = dataclasses.replace(outcome, findings=tuple(file_findings(outcome)))
    (row,) = build_table([outcome]).rows
    assert (row.ranked, row.trust, row.ranks) == (False, "error", {})


def test_what_a_file_must_state():
    assert check("threat-model", record("PGD", "pgd", first(1)))[0] == "passed"
    with pytest.raises(BenchError, match="is no radius"):
        result(record("PGD", "pgd", first(1), epsilon="about 0.03"))
    incomplete = dataclasses.replace(result(), run={"dataset": "d", "num_classes": 10})
    assert file_findings(incomplete)[0]["message"] == "run has no 'checkpoint_digest'"


def test_an_attack_of_the_suite_without_outcomes():
    whole = result(record("FGSM", "fgsm", first(1)), record("PGD", "pgd", first(2)))
    part = dataclasses.replace(whole, attacks={"FGSM": whole.attacks["FGSM"]})
    (found,) = [one for one in file_findings(part) if one["name"] == "every-attack"]
    assert (found["severity"], found["value"]) == ("error", 1)
    assert "missing: PGD" in found["message"]


def test_an_unknown_attack_is_left_out_of_comparisons():
    outcomes = result(record("Mine", "my-own", first(5)), record("F", "fgsm", first(9)))
    assert [one["name"] for one in outcome_findings(outcomes, 64)] == ["budget", "blind-attacks"]


def test_the_worst_finding_of_a_check_stands_and_the_worst_checks_come_first():
    def one(name, severity):
        return {"name": name, "severity": severity}

    found = worst_of_each([one("a", "passed"), one("b", "note"), one("a", "error"), one("b", "passed")])
    assert found == [one("a", "error"), one("b", "note")]


def test_of_equal_severity_the_first_to_repair_comes_first():
    names = ["rounding", "single-step", "model-changed", "batch-dependent", "mine", "train-mode"]
    found = worst_of_each(
        [{"name": name, "severity": "error"} for name in names] + [finding("near-chance", "note", "")]
    )
    assert [one["name"] for one in found] == [
        *("train-mode", "batch-dependent", "model-changed", "single-step", "rounding", "mine"),
        "near-chance",
    ]


def test_the_page_names_every_check_once_in_the_order_of_the_code():
    page = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
    section = page.partition("## Which one first")[2].partition("\n## ")[0]
    assert [name for name in re.findall(r"`([a-z-]+)`", section) if name in CHECKS] == list(CHECKS)


def test_the_command_shows_every_check_and_fails_on_errors(tmp_path):
    sound = result(record("PGD", "pgd", first(5)))
    probed = {"name": "dynamic", "severity": "passed", "message": "looked"}
    write_result(dataclasses.replace(sound, findings=(probed,)), tmp_path / "sound.h5")
    shown = CliRunner().invoke(command, [str(tmp_path / "sound.h5")])
    assert shown.exit_code == 0
    assert "✓ dynamic" in shown.output and "✓ budget" in shown.output
    assert shown.output.startswith("Trust: ? not checked (2 notes, 7 passed)\n")
    # A finding that was forged away comes back: outcomes are looked at again.
    forged = dataclasses.replace(result(record("PGD", "pgd", first(5)), clean=np.zeros(COUNT, dtype=np.int16)))
    write_result(dataclasses.replace(forged, findings=()), tmp_path / "forged.h5")
    assert [one["name"] for one in reassessed(forged) if one["severity"] == "error"] == ["near-chance"]
    refused = CliRunner().invoke(command, [str(tmp_path / "forged.h5")])
    assert refused.exit_code == 1
    assert "✗ near-chance" in refused.output
    assert refused.output.startswith("Trust: ✗ the numbers cannot be believed (1 error, ")
    assert refused.output.endswith("\nRepair the first one first. Why: bench explain near-chance\n")
    as_json = CliRunner().invoke(command, ["--json", str(tmp_path / "sound.h5")])
    assert '"name": "budget"' in as_json.output


def found(name, *records, **options):
    """A check's finding in the report of a file."""
    return next(one for one in concluded([], file_findings(result(*records, **options))) if one["name"] == name)


@pytest.mark.parametrize(("more", "severity"), [(4, "passed"), (20, "warning"), (80, "error")])
def test_a_stronger_attack_that_breaks_less(more, severity):
    longer = record("PGD-100", "pgd", first(100), steps=100)
    weaker = [
        record("PGD-20", "pgd", first(100 + more), steps=20),  # fewer steps
        record("PGD-50", "pgd", first(100 + more), steps=50),
    ]
    for one in weaker:
        assert found("stronger-attack", longer, one)["severity"] == severity
    restarts = [
        record(f"PGD x{n}", "pgd", first(count), steps=20, restarts=n) for n, count in ((5, 100), (1, 100 + more))
    ]
    assert found("stronger-attack", *restarts)["severity"] == severity
    stage = np.zeros(COUNT, dtype=np.int16)
    stage[:100] = 1
    cascade = record("AutoAttack", "autoattack", first(100), stage=stage)
    for attack in ("pgd", "cw", "fgsm"):
        assert found("stronger-attack", cascade, record("One", attack, first(100 + more)))["severity"] == severity
    small = record("PGD 4", "pgd", first(100 + more), epsilon="4/255")
    assert found("monotone", small, record("PGD 8", "pgd", first(100)))["severity"] == severity
    assert found("single-step", record("FGSM", "fgsm", first(100 + more)), longer)["severity"] == severity


def test_attacks_of_which_neither_is_the_stronger_are_not_compared():
    names = [record("C&W", "cw", first(50)), record("PGD-20", "pgd", first(150), steps=20)]
    assert "stronger-attack" not in [one["name"] for one in file_findings(result(*names))]
    # Nor are those of different radii, one of which has more steps.
    wide = record("PGD-20", "pgd", first(150), steps=20, epsilon="16/255")
    assert "stronger-attack" not in [one["name"] for one in file_findings(result(names[0], wide))]


@pytest.mark.parametrize(("more", "severity"), [(15, "passed"), (40, "note"), (200, "warning")])
def test_a_cascade_that_breaks_much_more_than_all_other_attacks(more, severity):
    stage = np.ones(COUNT, dtype=np.int16)
    columns = [record("PGD", "pgd", first(300)), record("C&W", "cw", first(400))]
    cascade = record("AutoAttack", "autoattack", first(400 + more), stage=stage)
    assert found("cascade-gap", *columns, cascade)["severity"] == severity
    # Under l1 PGD with a fixed step is weak on every network.
    sparse = [dataclasses.replace(one, norm="l1", epsilon="3") for one in (*columns, cascade)]
    assert found("cascade-gap", *sparse)["severity"] == ("note" if severity == "warning" else severity)


def test_a_suite_without_attacks_that_see_no_gradients_says_so():
    one = found("blind-attacks", record("PGD", "pgd", first(100)))
    assert (one["severity"], "without gradients" in one["message"]) == ("note", True)
    # Another norm has one: it would see masked gradients in both.
    square, pgd = record("Square", "square", first(90)), record("PGD", "pgd", first(100))
    sparse = record("PGD l1", "pgd", first(100), epsilon="3", norm="l1")
    assert found("blind-attacks", pgd, square, sparse)["severity"] == "passed"


def test_nothing_broken_at_all():
    assert found("nothing-broken", record("PGD", "pgd", first(0)))["severity"] == "warning"
    assert found("nothing-broken", record("PGD", "pgd", first(1)))["severity"] == "passed"
    # Of hardly more than guesses, or at radius 0, nothing follows.
    half = np.where(np.arange(COUNT) < 500, LABEL, (LABEL + 1) % 10).astype(np.int16)
    assert found("nothing-broken", record("PGD", "pgd", first(0)), clean=half)["severity"] == "passed"
    names = [one["name"] for one in file_findings(result(record("PGD", "pgd", first(0), epsilon="0")))]
    assert "nothing-broken" not in names


def test_the_suites_answer_on_more_samples_stands():
    steps = record("FGSM", "fgsm", first(100)), record("PGD-20", "pgd", first(100), steps=20)
    probed = [finding("single-step", "warning", "3 of 64"), finding("finite-differences", "warning", "off")]
    report = concluded(probed, file_findings(result(*steps)))
    severities = {one["name"]: one["severity"] for one in report}
    assert (severities["single-step"], severities["finite-differences"]) == ("passed", "warning")
    # Where the suite is silent, the probe speaks; other radii are its own.
    assert {one["name"]: one["severity"] for one in concluded(probed, [])}["single-step"] == "warning"
    monotone = [finding("monotone", "warning", "half radius")]
    assert {one["name"]: one["severity"] for one in concluded(monotone, file_findings(result(*steps)))}[
        "monotone"
    ] == "warning"


@pytest.mark.parametrize(
    ("names", "severity"),
    [
        (["random-search"], "passed"),
        (["random-search", "unbounded-attack"], "error"),
        (["finite-differences", "blind-attacks"], "error"),
        (["random-search", "loss-gap", "more-steps"], "passed"),
    ],
)
def test_warnings_that_agree_are_an_error(names, severity):
    report = concluded([finding(name, "warning", "seen") for name in names], [])
    assert {one["name"]: one["severity"] for one in report}["masked-gradients"] == severity
    # Once more over what was stored changes nothing.
    assert concluded(report, []) == report


def test_the_advice_names_what_was_seen():
    smooth = concluded([finding("random-search", "warning", "seen")], [])
    cut = concluded([finding(name, "warning", "seen") for name in ("random-search", "gradients-margin")], [])
    advice = [next(one["advice"] for one in report if one["name"] == "random-search") for report in (smooth, cut)]
    assert ["BPDA" in text for text in advice] == [False, True]
