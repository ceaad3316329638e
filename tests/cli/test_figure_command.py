"""`bench figure`: what is drawn are the numbers of the results and of the model; errors are one line."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.attacks.pgd import PGD
from bench.data.datasets import load_dataset
from bench.evaluation.pictures import run_names
from bench.interfaces import Draws, Problem, ThreatModel
from bench.leaderboard.figures import canvas
from bench.models.checkpoints import load_checkpoint
from bench.results.file import read_result, write_result
from bench.training.request import TrainingRequest
from bench.training.train import train
from tests.support import command
from tests.support.example_results import corrupted, example, in_pairs, predictions, record, with_distances, with_run

FEW = {"fog": (8, 4), "frost": (6, 1)}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Runs `bench ARGUMENTS` in an empty folder; returns (exit code, output, the figures that were written)."""
    monkeypatch.chdir(tmp_path)
    drawn = []
    original = canvas.write_figure
    monkeypatch.setattr(canvas, "write_figure", lambda figure, path: drawn.append(figure) or original(figure, path))

    def run(*arguments):
        drawn.clear()
        return *command.bench(*arguments), list(drawn)

    return run


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    """Two untrained networks with two features each: a linear layer, and prototypes."""
    runs = tmp_path_factory.mktemp("runs")
    folders = []
    for defense in ("st", "adv-dpnp"):
        small = {"backbone": "lenetpp", "protocol": {"epochs": 1, "attack_steps": 1}, "limit_train": 16}
        folders.append(train(TrainingRequest(defense, "digits", runs=runs, **small), quiet=True))
    return folders


def refused(bench, text, *arguments):
    code, output, drawn = bench("figure", *arguments, "--out", "f")
    told = [line for line in output.splitlines() if not line.endswith(" stand")]
    assert (code, len(told), drawn) == (2, 1, []), output
    assert text in output


def with_radii(right, **run):
    """FGSM and PGD-20 at two radii each: how many samples are right."""
    attacks = {}
    for (name, attack, epsilon), count in right.items():
        one = record(f"{name} {epsilon}", attack, tuple(range(count)), tuple(range(count)))
        attacks[one.label] = replace(one, epsilon=epsilon, parameters={"steps": int(name.rpartition("-")[2] or 1)})
    suite = {"name": "figure4", "version": 1}
    return with_run(example(attacks=attacks, suite=suite, findings=()), **run)


RADII = {
    ("F-1", "fgsm", "4/255"): 6,
    ("P-20", "pgd", "8/255"): 1,
    ("P-20", "pgd", "2/255"): 5,
    ("F-1", "fgsm", "1/255"): 7,
}


def points(line):
    return [(round(255 * x, 9), y) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def test_figure_3_shows_the_means_by_severity(bench, tmp_path):
    write_result(corrupted(FEW), tmp_path / "a.h5")
    write_result(corrupted({"fog": (9, 5), "frost": (7, 3)}, model="TRADES"), tmp_path / "b.h5")
    code, output, drawn = bench("figure", "3", "a.h5", "b.h5", "--out", "figures/three")
    assert code == 0
    assert output.split() == ["figures/three.png", "figures/three.svg"]
    assert (tmp_path / "figures/three.png").read_bytes().startswith(b"\x89PNG")
    axes = drawn[0].axes[0]
    heights = [[bar.get_height() for bar in group] for group in axes.containers]
    assert heights == [pytest.approx([70, 25]), pytest.approx([80, 40])]
    assert axes.get_title() == "CIFAR-10-C, 2 corruptions"
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["AT", "TRADES"]
    refused(bench, "outside the axis 60..100", "3", "a.h5", "--from", 60)


def test_classes_are_a_row_of_two_maps_for_each_result(bench, tmp_path):
    write_result(in_pairs(), tmp_path / "a.h5")
    write_result(with_run(in_pairs(), model="TRADES"), tmp_path / "b.h5")
    code, output, drawn = bench("figure", "classes", "a.h5", "b.h5", "--out", "f")
    assert code == 0 and output.split() == ["f.png", "f.svg"]
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert titles == ["AT: accuracy", "AT: worst case", "TRADES: accuracy", "TRADES: worst case"]
    refused(bench, "was evaluated under the convention `any` only", "classes", "a.h5", "--convention", "final")


def test_figure_4_begins_at_clean_accuracy_and_orders_the_radii(bench, tmp_path):
    write_result(with_radii(RADII), tmp_path / "a.h5")
    write_result(with_radii(RADII, dataset="mnist"), tmp_path / "b.h5")
    code, _, drawn = bench("figure", "4", "a.h5", "b.h5", "--out", "f")
    assert code == 0
    assert [axes.get_title() for axes in drawn[0].axes] == ["digits, linf", "mnist, linf"]
    for axes in drawn[0].axes:
        fgsm, pgd = axes.lines
        assert points(fgsm) == [(0, 80), (1, 70), (4, 60)]
        assert points(pgd) == [(0, 80), (2, 50), (8, 10)]
        assert (fgsm.get_linestyle(), pgd.get_linestyle()) == ("--", "-")
        assert fgsm.get_color() == pgd.get_color()
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["AT", "FGSM", "PGD"]


def test_a_curve_of_any_suite_tells_attacks_of_one_name_and_norms_apart(bench, tmp_path):
    more = {("P-9", "pgd", "8/255"): 2, ("P-9", "pgd", "2/255"): 6, ("A-1", "autoattack", "8/255"): 0}
    result = with_radii({**RADII, **more})
    moved = replace(result.attacks["F-1 4/255"], label="l2", norm="l2", epsilon="1/2")
    further = replace(moved, label="l2 far", epsilon="1", prediction=predictions(0))
    attacks = {**result.attacks, "l2": moved, "l2 far": further}
    write_result(replace(result, attacks=attacks, suite={"name": "mine", "version": 1}), tmp_path / "a.h5")
    refused(bench, "is a result of suite mine: evaluate with --suite figure4, or draw it with", "4", "a.h5")
    code, _, drawn = bench("figure", "curve", "a.h5", "--out", "f")
    assert code == 0
    linf, l2 = drawn[0].axes
    assert [points(line) for line in linf.lines] == [
        [(0, 80), (1, 70), (4, 60)],
        [(0, 80), (2, 50), (8, 10)],
        [(0, 80), (2, 60), (8, 20)],
    ]
    assert len({line.get_linestyle() for line in linf.lines}) == 3
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["AT", "FGSM", "PGD STEPS=20", "PGD STEPS=9"]
    assert [(x / 255, y) for x, y in points(l2.lines[0])] == [(0, 80), (0.5, 60), (1, 10)]
    write_result(example(), tmp_path / "b.h5")
    refused(bench, "no attack at several radii. Evaluate with --suite figure4", "curve", "b.h5")


def test_a_curve_of_distances_falls_where_each_image_was_broken(bench, tmp_path):
    write_result(with_distances(), tmp_path / "a.h5")
    code, output, drawn = bench("figure", "curve", "a.h5", "--distances", "--out", "f")
    assert code == 0, output
    (axes,) = drawn[0].axes
    (line,) = axes.lines
    assert [(round(x, 6), y) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)] == [
        (0, 80),
        (0.1, 60),
        (0.2, 40),
        (0.4, 30),
        (0.5, 20),
        (1, 20),
    ]
    assert line.get_drawstyle() == "steps-post"
    assert (axes.get_title(), axes.get_ylabel()) == ("digits, linf", "Accuracy (%), upper bound")
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["AT", "BEST KNOWN"]
    code, _, drawn = bench("figure", "curve", "a.h5", "--distances", "--attack", "AA", "--attack", "FGSM", "--out", "f")
    assert [list(line.get_ydata()) for line in drawn[0].axes[0].lines] == [[80, 70, 60, 40, 30, 30], [80, 70, 60, 60]]
    refused(bench, "unknown attack 'AB'. Did you mean 'AA'", "curve", "a.h5", "--distances", "--attack", "AB")
    write_result(corrupted(FEW), tmp_path / "c.h5")
    refused(bench, "has no attacks, and so no distances", "curve", "c.h5", "--distances")


def test_training_curves_are_the_history(bench, digits_run):
    code, _, drawn = bench("figure", "training", digits_run, "--out", "f")
    assert code == 0
    rows = [json.loads(line) for line in (digits_run / "history.jsonl").read_text().splitlines()]
    panels = {axes.get_title().replace(" ", "_"): axes.lines[0] for axes in drawn[0].axes}
    assert set(panels) == set(rows[0]) - {"epoch"}
    for key, line in panels.items():
        assert list(line.get_ydata()) == [row[key] for row in rows]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["at/seed-0"]
    refused(bench, "no history of a training in nowhere", "training", "nowhere")
    refused(bench, "the same run was given twice", "training", digits_run, digits_run)


def test_figure_2_shows_the_features_of_clean_images_and_last_iterates(bench, plane, tmp_path):
    count = 8
    code, output, drawn = bench("figure", "2", *plane, "--limit", count, "--eps", "0.1", "--out", "f")
    assert code == 0, output
    grid = np.array(drawn[0].axes).reshape(2, 2)
    assert [axes.get_title() for axes in grid[0]] == ["st", "adv-dpnp"]
    split = load_dataset("digits", tmp_path).test.take(count)
    labels = split.labels.numpy()
    for column, run in enumerate(plane):
        model = load_checkpoint(run).build()
        images = split.images(slice(None))
        draws = Draws(0, "pgd/linf", np.arange(count))
        problem = Problem(model, images, split.labels, ThreatModel("linf", "0.1"), draws)
        last = PGD(steps=40, step_size="eps/30").perturb(problem)
        for row, shown in enumerate((images, last)):
            with torch.no_grad():
                expected = model.features(shown).numpy()
            drawn_points = [points.get_offsets() for points in grid[row, column].collections]
            for number, label in enumerate(np.unique(labels)):
                np.testing.assert_allclose(drawn_points[number], expected[labels == label], atol=1e-4)
        stars = grid[0, column].collections[len(np.unique(labels)) :]
        assert len(stars) == 2 * column
        for one in stars:
            np.testing.assert_allclose(one.get_offsets(), model.class_centres().detach().numpy(), rtol=1e-6)


def test_figure_2_needs_a_plane_and_a_suite_of_features(bench, plane, digits_run):
    refused(bench, "has 128 features; a plane shows 2. Train with --backbone lenetpp", "2", digits_run, "--limit", 8)
    refused(bench, "suite quick measures no features: choose figure2", "2", plane[0], "--limit", 8, "--suite", "quick")
    refused(bench, "no checkpoint at nowhere", "2", "nowhere")
    refused(bench, "r.h5 is a result file, and this figure looks at models: give run folders.", "2", "r.h5")


def sheet(figure):
    """Per row: clean and adversarial image, and the texts below and beside them."""
    grid = np.array(figure.axes).reshape(-1, 3)
    return [
        (
            *(axes.images[0].get_array()[..., 0] for axes in row[:2]),
            [row[0].get_ylabel(), row[0].get_xlabel(), row[1].get_xlabel()],
        )
        for row in grid
    ]


def test_a_sheet_from_a_result_shows_the_kept_images_and_a_run_crafts_the_same(bench, digits_run, tmp_path):
    given = ("eval", digits_run, "--suite", "quick", "--limit", 40, "--probes", 0, "--save-adversarials")
    assert bench(*given, "--out", "r.h5")[0] == 0
    code, output, kept = bench("figure", "sheet", "r.h5", "--attack", "FGSM", "--count", 2, "--out", "f")
    assert code == 0, output
    result = read_result("r.h5")
    prediction = result.attacks["FGSM"].prediction
    broken = np.flatnonzero((result.clean_prediction == result.label) & (prediction != result.label))[:2]
    split, model = load_dataset("digits", tmp_path).test, load_checkpoint(digits_run).build()
    for row, (clean, adversarial, texts) in zip(broken, sheet(kept[0]), strict=True):
        np.testing.assert_array_equal(clean, split.images(slice(row, row + 1))[0, 0].numpy())
        assert 0 < np.abs(adversarial - clean).max() <= 0.15 + 1e-6
        with torch.no_grad():
            assert model(torch.from_numpy(adversarial[None, None].astype(np.float32))).argmax() == prediction[row]
        true = result.label[row]
        assert texts == [f"true: {true}", f"right: {true}", f"wrong: {prediction[row]}"]
    options = ("--attack", "FGSM", "--count", 2, "--limit", 40, "--out", "g")
    code, _, crafted = bench("figure", "sheet", digits_run, *options)
    assert code == 0
    for first, second in zip(sheet(kept[0]), sheet(crafted[0]), strict=True):
        np.testing.assert_array_equal(first[1], second[1])
        assert first[2] == second[2]
    refused(bench, "unknown attack 'FGS'. Did you mean 'FGSM'?", "sheet", "r.h5", "--attack", "FGS")
    refused(bench, "the attack broke none of these images", "sheet", digits_run, "--eps", "0.0001", "--limit", 8)


def test_a_result_without_images_is_one_line(bench, tmp_path):
    write_result(example(), tmp_path / "r.h5")
    refused(bench, "no images beside r.h5: evaluate with --save-adversarials, or give the run folder", "sheet", "r.h5")
    refused(bench, "cannot read 'nothing.h5'", "sheet", "nothing.h5")


@pytest.mark.parametrize("kind", ["3", "4"])
def test_a_result_of_another_kind_is_one_line(bench, tmp_path, kind):
    write_result(example() if kind == "3" else corrupted(FEW), tmp_path / "r.h5")
    texts = {"3": "'AT' has no corruptions: `bench eval --suite corruptions`", "4": "is a result of suite corruptions"}
    refused(bench, texts[kind], kind, "r.h5")


def test_names_of_runs_are_as_short_as_they_differ(tmp_path):
    runs = [tmp_path / "a" / "at" / "seed-0", tmp_path / "b" / "at" / "seed-0"]
    assert run_names(runs, ["at", "st"]) == ["at", "st"]
    assert run_names(runs, ["at", "at"]) == ["a/at/seed-0", "b/at/seed-0"]
    assert run_names(runs[:1]) == ["at/seed-0"]
