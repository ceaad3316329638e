"""Figures: what is drawn is what was given, read back from the artists; files are whole, equal and well-formed."""

import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import numpy as np
import pytest

from bench.errors import BenchError
from bench.leaderboard.figures.adversarial_sheet import adversarial_sheet
from bench.leaderboard.figures.canvas import COLOURS, HATCHES, LONGEST_NAME, MARKS, house_style, plain, write_figure
from bench.leaderboard.figures.class_maps import ClassMap, class_figure, class_maps
from bench.leaderboard.figures.feature_scatter import feature_scatter
from bench.leaderboard.figures.nearest_sheet import nearest_sheet
from bench.leaderboard.figures.robustness_curve import RobustnessCurve, robustness_curve
from bench.leaderboard.figures.severity_bars import severity_bars
from bench.leaderboard.figures.training_curves import training_curves
from bench.results.pictures import AdversarialExample, FeatureCloud, NearestPair
from bench.results.watched import watched_row
from tests import ROOT
from tests.support.example_results import corrupted, in_pairs

# As mathematics this would not parse: drawing it would fail.
HOSTILE = "_a $\\frac$ <script>alert(1)</script> --> & \x00\x1b\n\\$ b"
SHOWN = "_a $\\frac$ <script>alert(1)</script> --> & \\$ b"


def curve(name="at", attack="pgd", epsilons=("4/255", "8/255"), robust=(60, 40), total=100):
    return RobustnessCurve(name, attack, epsilons, robust, total)


def cloud(model="at", samples=40, centres=True, classes=("zero", "one", "two")):
    rng = np.random.default_rng(0)
    labels = np.arange(samples) % 3
    clean = rng.normal(size=(samples, 2)).astype(np.float32)
    return FeatureCloud(model, clean, clean + 1, labels, classes, rng.normal(size=(3, 2)) if centres else None)


def example(channels=3, predicted="dog"):
    clean = np.linspace(0.1, 0.9, channels * 16).reshape(channels, 4, 4)
    return AdversarialExample(clean, clean + 0.05 * (-1.0) ** np.arange(4), "cat", "cat", predicted)


HISTORY = [
    {"epoch": 1, "learning_rate": 0.1, "clean": 2.0, "repulsion": -66.0},
    {"epoch": 2, "learning_rate": 0.1, "clean": 1.5, "repulsion": -67.0, "held_out_pgd": 31.0},
    {"epoch": 3, "learning_rate": 0.01, "clean": 1.25, "repulsion": -68.0, "held_out_pgd": 33.0},
]


def draw(kind, name="at"):
    """A small figure of a kind that says `name` wherever it can."""
    if kind == "curve":
        return robustness_curve({name: [curve(name), curve(name, "fgsm")]})
    if kind == "bars":
        return severity_bars({name: [80.0, 70.0], "b": [75.0, 65.0]}, name)
    if kind == "classes":
        return class_maps([[ClassMap(name, [name], ["0", "1"], np.array([[10.0, 90.0]]), ("Class", ""))]])
    if kind == "scatter":
        return feature_scatter([cloud(name, classes=(name, "b", "c"))])
    if kind == "training":
        return training_curves({name: [{"epoch": 1, "clean": 2.0, name: 1.0}]})
    return adversarial_sheet([AdversarialExample(np.zeros((1, 2, 2)), np.ones((1, 2, 2)), name, name, "b")])


def texts(figure):
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_curve_is_the_accuracy_with_its_wilson_band():
    # Wilson at 95 % for 50 of 100 and 0 of 100, from the formula: centre (s + z^2/2) / (n + z^2) and so on.
    figure = robustness_curve({"digits": [curve(epsilons=("8/255", "4/255"), robust=(0, 50))]})
    axes = figure.axes[0]
    line = axes.lines[0]
    np.testing.assert_allclose(line.get_xdata(), [4 / 255, 8 / 255], rtol=1e-15)
    assert list(line.get_ydata()) == [50.0, 0.0]
    z = 1.959963984540054
    middle, half = (50 + z * z / 2) / (100 + z * z), z * np.sqrt(100 * 0.25 + z * z / 4) / (100 + z * z)
    band = {tuple(np.round(vertex, 9)) for vertex in axes.collections[0].get_paths()[0].vertices}
    for radius, bound in ((4, middle - half), (4, middle + half), (8, 0.0), (8, z * z / (100 + z * z))):
        assert (round(radius / 255, 9), round(100 * bound, 9)) in band
    assert (axes.get_title(), axes.get_ylabel(), axes.get_xlabel()) == ("digits", "Accuracy (%)", "ε (units of 1/255)")
    assert axes.get_ylim() == (0, 100)


def test_models_have_colours_and_marks_and_attacks_have_line_styles_in_every_panel():
    figure = robustness_curve(
        {
            "CIFAR-10": [curve("a", "fgsm"), curve("a"), curve("b"), curve("b", "cw")],
            "MNIST": [curve("b", epsilons=("0.1", "0.3"))],
        }
    )
    first, second = (axes.lines for axes in figure.axes)
    assert [line.get_linestyle() for line in first] == ["--", "-", "-", ":"]
    assert [line.get_marker() for line in first] == [MARKS[0], MARKS[0], MARKS[1], MARKS[1]]
    assert [line.get_color() for line in (*first, *second)] == [COLOURS[number] for number in (0, 0, 1, 1, 1)]
    assert [axes.get_title() for axes in figure.axes] == ["CIFAR-10", "MNIST"]
    assert figure.axes[1].get_xlabel() == "ε"
    assert legend(figure) == ["a", "b", "FGSM", "PGD", "CW"]


def test_ticks_in_255ths_stand_where_they_say():
    axes = robustness_curve({"d": [curve(epsilons=("1/255", "16/255"))]}).axes[0]
    named = {text.get_text(): place for text, place in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)}
    assert {"0", "4", "8", "16"} <= set(named)
    for text, place in named.items():
        assert place == pytest.approx(float(text) / 255, rel=1e-12)


def test_bars_are_the_accuracies_side_by_side():
    accuracies = {"a": [80.0, 70.5, 60.25], "b": [79.0, 71.0, 62.0], "c": [78.0, 69.0, 61.0]}
    figure = severity_bars(accuracies, "CIFAR-10-C", lowest=60.0)
    axes = figure.axes[0]
    assert [[bar.get_height() for bar in group] for group in axes.containers] == list(accuracies.values())
    assert all(bar.get_y() == 0 for group in axes.containers for bar in group)
    for severity in range(3):
        edges = [(group[severity].get_x(), group[severity].get_width()) for group in axes.containers]
        assert all(x + width <= after for (x, width), (after, _) in pairwise(edges))
        assert np.mean([x + width / 2 for x, width in edges]) == pytest.approx(severity + 1)
    assert axes.get_ylim()[0] == 60.0
    assert (axes.get_title(), axes.get_xlabel()) == ("CIFAR-10-C", "Severity")
    assert axes.get_ylabel() == "Accuracy (%), axis from 60"
    assert legend(figure) == ["a", "b", "c"]
    assert [group[0].get_hatch() or "" for group in axes.containers] == list(HATCHES[:3])


def test_heat_maps_are_the_accuracies_by_class_and_the_classes_that_others_are_taken_for():
    accuracy, taken = class_figure([in_pairs()]).axes
    assert [text.get_text() for text in accuracy.get_yticklabels()] == [
        "Clean",
        "Worst case",
        *("FGSM", "PGD-20", "AA", "Ensemble"),
    ]
    shown = np.asarray(accuracy.images[0].get_array())
    assert shown[3].tolist() == [100, 100, 0, 50, 0]
    assert shown[1].tolist() == [100, 0, 0, 0, 0]
    assert [text.get_text() for text in accuracy.texts[15:20]] == ["100", "100", "0", "50", "0"]
    # Every image of class 1 is taken for class 2, and so on; those of class 4, wrong already, for class 0.
    np.testing.assert_array_equal(taken.images[0].get_array(), 100 * np.eye(5)[[0, 2, 3, 4, 0]])
    assert (accuracy.get_title(), taken.get_title()) == ("AT: accuracy", "AT: worst case")
    assert (taken.get_xlabel(), taken.get_ylabel()) == ("Taken for", "Class")


def test_a_hundred_classes_are_drawn_without_numbers():
    names = [str(number) for number in range(100)]
    axes = class_maps([[ClassMap("m", names, names, np.eye(100), ("", ""))]]).axes[0]
    assert len(axes.texts) == 0
    assert [text.get_text() for text in axes.get_xticklabels()] == names[::5]


def test_no_two_of_thirty_series_look_alike_even_in_grey():
    groups = severity_bars({str(number): [50.0] for number in range(30)}).axes[0].containers
    looks = {(group[0].get_facecolor(), group[0].get_hatch()) for group in groups}
    assert len(looks) == 30
    lines = robustness_curve({"d": [curve(str(number)) for number in range(30)]}).axes[0].lines
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 30
    assert len({line.get_marker() for line in lines[:11]}) == 11


def test_points_are_the_features_of_their_class_and_stars_the_centres():
    clouds = [cloud("at", centres=False), cloud("adv-dpnp")]
    figure = feature_scatter(clouds)
    grid = np.array(figure.axes).reshape(2, 2)
    for row, view in enumerate(("clean", "adversarial")):
        for column, given in enumerate(clouds):
            drawn = grid[row, column].collections
            for label in range(3):
                np.testing.assert_array_equal(drawn[label].get_offsets(), getattr(given, view)[given.labels == label])
            assert len(drawn) == (3 if given.centres is None else 5)
            for stars in drawn[3:]:
                np.testing.assert_array_equal(stars.get_offsets(), given.centres)
    assert [axes.get_title() for axes in grid[0]] == ["at", "adv-dpnp"]
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["Clean", "Adversarial"]
    for column in range(2):
        assert grid[0, column].get_xlim() == grid[1, column].get_xlim()
        assert grid[0, column].get_ylim() == grid[1, column].get_ylim()
    assert legend(figure) == ["zero", "one", "two", "class centre"]
    assert legend(feature_scatter(clouds[:1])) == ["zero", "one", "two"]


def test_the_axes_hold_every_point_and_a_hundred_classes_have_a_legend_that_fits():
    given = cloud(classes=tuple(f"class number {number}" for number in range(100)))
    axes = feature_scatter([given]).axes[0]
    everything = np.concatenate((given.clean, given.adversarial, given.centres))
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert (everything > [left, bottom]).all()
    assert (everything < [right, top]).all()
    assert right - left == pytest.approx(top - bottom)
    figure = axes.figure
    with house_style():
        figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 > axes.get_window_extent().x1
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1


def test_every_recorded_value_has_a_panel_and_every_run_a_line():
    figure = training_curves({"seed 0": HISTORY, "seed 1": HISTORY[:2]})
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == ["learning rate", "clean", "repulsion", "held out pgd"]
    for title, axes in panels.items():
        key = title.replace(" ", "_")
        for line, history in zip(axes.lines, (HISTORY, HISTORY[:2]), strict=True):
            given = [(row["epoch"], row[key]) for row in history if key in row]
            assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == given
    assert panels["learning rate"].get_yscale() == "log"
    assert legend(figure) == ["seed 0", "seed 1"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"Epoch"}


def test_watched_accuracies_have_a_panel_each_with_a_pale_line_for_training_images():
    right = np.arange(4) < np.array([[[4], [3], [2]], [[3], [2], [1]]])
    watched = [{"epoch": number, "clean": 1.0, **watched_row(right)} for number in (1, 2)]
    figure = training_curves({"watched": watched, "not watched": HISTORY})
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert [*panels][-3:] == ["watched clean", "watched FGSM", "watched PGD-10"]
    for place, under in enumerate(("clean", "FGSM", "PGD-10")):
        train, _, test, _ = panels[f"watched {under}"].lines
        assert list(train.get_ydata()) == [100.0 - 25 * place] * 2
        assert list(test.get_ydata()) == [75.0 - 25 * place] * 2
        assert train.get_color() == test.get_color()
        assert (train.get_alpha(), test.get_alpha()) == (0.4, None)
    assert {panels[f"watched {under}"].get_ylim() for under in ("clean", "FGSM", "PGD-10")} == {(-2, 102)}
    assert legend(figure) == ["watched", "not watched", "pale: training images"]


@pytest.mark.parametrize("panels", [1, 4, 5, 10])
def test_the_lowest_panel_of_each_column_names_the_epoch(panels):
    figure = training_curves({"a": [{"epoch": 1, **{f"term {number}": 1.0 for number in range(panels)}}]})
    assert len(figure.axes) == panels
    lowest = {axes.get_subplotspec().colspan.start: axes for axes in figure.axes}
    assert {axes for axes in figure.axes if axes.get_xlabel() == "Epoch"} == set(lowest.values())


@pytest.mark.parametrize("channels", [3, 1])
def test_a_sheet_of_nearest_images_shows_them_with_classes_and_distances(channels):
    test = np.linspace(0, 1, channels * 4).reshape(channels, 2, 2)
    pairs = [NearestPair(test, 1 - test, "cat", "dog", 0.125), NearestPair(1 - test, test, "a $ b", "c", 2.0)]
    spaces = {"pixels": pairs, "features": pairs[::-1]}
    figure = nearest_sheet(spaces)
    grid = np.array(figure.axes).reshape(2, 2, 2)
    for two, shown in zip(grid, spaces.values(), strict=True):
        for column, pair in zip(two.T, shown, strict=True):
            for axes, image in zip(column, (pair.test, pair.extra), strict=True):
                drawn = axes.images[0].get_array()
                np.testing.assert_allclose(drawn, np.broadcast_to(image.transpose(1, 2, 0), drawn.shape), atol=1e-12)
    assert [axes.get_title() for axes in grid[0].T.flat] == ["cat", "dog", "a $ b", "c"]
    assert [axes.get_xlabel() for axes in grid[:, 1].flat] == [f"distance {one}" for one in ("0.125", 2, 2, "0.125")]
    named = ["test", "extra, by pixels", "test", "extra, by features"]
    assert [axes.get_ylabel() for axes in grid[:, :, 0].flat] == named


@pytest.mark.parametrize(("channels", "magnification"), [(3, None), (1, None), (3, 4.0)])
def test_a_sheet_shows_the_images_and_their_magnified_difference(channels, magnification):
    given = [example(channels), example(channels, predicted="cat")]
    figure = adversarial_sheet(given, magnification)
    factor = magnification or 0.5 / 0.05
    grid = np.array(figure.axes).reshape(2, 3)
    for row, shown in zip(grid, given, strict=True):
        expected = (shown.clean, shown.adversarial, 0.5 + factor * (shown.adversarial - shown.clean))
        for axes, image in zip(row, expected, strict=True):
            drawn = axes.images[0].get_array()
            rgb = np.broadcast_to(image.transpose(1, 2, 0), drawn.shape)
            np.testing.assert_allclose(drawn, np.clip(rgb, 0, 1), atol=1e-12)
    assert [axes.get_title() for axes in grid[0]] == ["Clean", "Adversarial", f"Difference x {factor:g}"]
    assert [row[0].get_ylabel() for row in grid] == ["true: cat", "true: cat"]
    assert [axes.get_xlabel() for axes in grid[0]] == ["right: cat", "wrong: dog", "largest change 0.05"]
    assert grid[1, 1].get_xlabel() == "right: cat"


def test_an_unchanged_image_has_a_grey_difference():
    clean = np.full((1, 2, 2), 0.25)
    figure = adversarial_sheet([AdversarialExample(clean, clean, "1", "1", "1")])
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), np.full((2, 2, 3), 0.5))


@pytest.mark.parametrize("kind", ["curve", "bars", "classes", "scatter", "training", "sheet"])
def test_equal_figures_become_equal_files_whatever_their_names_and_ones_own_settings(kind, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure = draw(kind, HOSTILE)
    png, svg = write_figure(figure, tmp_path / "model-0.5")
    assert (png, svg) == (tmp_path / "model-0.5.png", tmp_path / "model-0.5.svg")
    assert sorted(tmp_path.iterdir()) == [png, svg]
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "axes.facecolor": "red", "savefig.dpi": 20}):
        again = write_figure(draw(kind, HOSTILE), tmp_path / "again")
    assert [path.read_bytes() for path in again] == [png.read_bytes(), svg.read_bytes()]
    assert png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") and b"Software" not in png.read_bytes()
    assert not re.search(r"matplotlib v|Matplotlib v|<dc:date>", svg.read_text())
    root = ElementTree.fromstring(svg.read_bytes())
    allowed = {"svg", "g", "path", "defs", "use", "style", "metadata", "clipPath", "rect", "image", "pattern"}
    drawn = {element.tag.partition("}")[2] for element in root.iter() if "www.w3.org/2000/svg" in element.tag}
    assert drawn <= allowed
    begins = plain(HOSTILE, 18)[:17] if kind == "sheet" else SHOWN[:40]
    assert any(begins in text for text in texts(figure))


def test_the_hostile_name_would_fail_as_mathematics():
    figure = draw("bars")
    figure.text(0, 0, SHOWN)
    with pytest.raises(ValueError, match="frac"):
        figure.savefig(io.BytesIO(), format="svg")


def test_names_are_one_line_of_bounded_length():
    assert plain(HOSTILE, 99) == SHOWN
    assert plain("x" * 200) == "x" * (LONGEST_NAME - 1) + "…"
    assert plain("x" * LONGEST_NAME) == "x" * LONGEST_NAME


def test_thousands_of_points_become_pixels_in_an_svg(tmp_path):
    _, svg = write_figure(feature_scatter([cloud(samples=3000)]), tmp_path / "figure")
    assert svg.read_text().count("<image") > 0
    assert svg.stat().st_size < 400_000


def test_a_file_that_cannot_be_written_is_one_line_and_harms_nothing(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(BenchError, match="cannot write"):
        write_figure(draw("bars"), tmp_path / "file" / "figure")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("draw", "text"),
    [
        (lambda: robustness_curve({}), "no dataset to draw"),
        (lambda: robustness_curve({"d": []}), "no curve of 'd' to draw"),
        (lambda: robustness_curve({"d": [curve(epsilons=("8/255",))]}), "1 radii and 2 counts"),
        (lambda: robustness_curve({"d": [curve(epsilons=("a", "b"))]}), "epsilon 'a' is not a number"),
        (lambda: robustness_curve({"d": [curve(robust=(101, 3))]}), "101 of 100 samples"),
        (lambda: severity_bars({}), "no model to draw"),
        (lambda: severity_bars({"a": []}), "no severity to draw"),
        (lambda: severity_bars({"a": [1.0], "b": [1.0, 2.0]}), "different numbers of severities"),
        (lambda: severity_bars({"a": [50.0]}, lowest=60.0), r"\[50.0\] %, outside the axis 60..100"),
        (lambda: severity_bars({"a": [float("nan")]}), r"\[nan\] %, outside"),
        (lambda: feature_scatter([]), "no model to draw"),
        (lambda: feature_scatter([cloud(classes=("a", "b"))]), r"label \[2\] of 'at' is not among 2"),
        (
            lambda: feature_scatter([FeatureCloud("m", *[np.ones((1, 512))] * 2, np.zeros(1, int), ("a",))]),
            "512 features",
        ),
        (
            lambda: feature_scatter([FeatureCloud("m", *[np.full((1, 2), np.nan)] * 2, np.zeros(1, int), ("a",))]),
            "finite",
        ),
        (lambda: training_curves({"a": [{"epoch": 1, "clean": "x"}]}), "not a number"),
        (lambda: training_curves({"a": []}), "no epoch to draw"),
        (lambda: training_curves({"a": [{"clean": 1.0}]}), "no epoch"),
        (lambda: training_curves({"a": [{"epoch": 1}]}), "no value to draw"),
        (lambda: adversarial_sheet([]), "no example to draw"),
        (lambda: class_maps([]), "no map to draw"),
        (lambda: class_maps([[ClassMap("m", ["a"], ["b"], np.array([[101.0]]), ("", ""))]]), "outside 0..100"),
        (lambda: class_maps([[ClassMap("m", ["a"], ["b"], np.zeros((2, 1)), ("", ""))]]), r"shape \(2, 1\)"),
        (lambda: class_figure([corrupted({"fog": (8, 4)})]), "'AT' has no attacks"),
        (lambda: nearest_sheet({"pixels": []}), "no pair to draw"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(draw, text):
    with pytest.raises(BenchError, match=text):
        draw()


def test_matplotlib_is_imported_only_to_draw():
    program = "from leaderboard.figures import severity_bars; import sys; assert 'matplotlib' not in sys.modules\n"
    program += "severity_bars.severity_bars({'a': [1.0]}); assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
