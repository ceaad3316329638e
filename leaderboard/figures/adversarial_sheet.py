"""Images before and after an attack, side by side."""

from collections.abc import Sequence

import numpy as np

from bench.leaderboard.figures.canvas import (
    SHORT_NAME,
    Figure,
    house_style,
    name_axes,
    new_figure,
    plain,
    require_some,
    show_image,
)
from bench.results.pictures import AdversarialExample


def adversarial_sheet(examples: Sequence[AdversarialExample], magnification: float | None = None) -> Figure:
    """A row per example: clean, adversarial, and their magnified difference on grey, with true and predicted classes.

    Args:
        examples: what to show.
        magnification: of the difference; None: one for all rows, such that the largest difference is black or white.

    Raises:
        BenchError: no example.
    """
    require_some("example", examples)
    largest = max(float(np.abs(example.adversarial - example.clean).max()) for example in examples)
    factor = magnification or (0.5 / largest if largest else 1.0)
    with house_style():
        figure, grid = new_figure(len(examples), 3, 6.4, 2.3 * len(examples) + 0.4, "compressed")
        for row, example in zip(grid, examples, strict=True):
            shown = (example.clean, example.adversarial, 0.5 + factor * (example.adversarial - example.clean))
            for axes, image in zip(row, shown, strict=True):
                show_image(axes, image)
            for axes, predicted in zip(row, (example.clean_prediction, example.adversarial_prediction), strict=False):
                axes.set_xlabel(f"{'right' if predicted == example.true else 'wrong'}: {plain(predicted, SHORT_NAME)}")
                axes.xaxis.label.set_parse_math(False)
            row[0].set_ylabel(f"true: {plain(example.true, SHORT_NAME)}", parse_math=False)
            row[2].set_xlabel(f"largest change {np.abs(example.adversarial - example.clean).max():.3g}")
        for axes, title in zip(grid[0], ("Clean", "Adversarial", f"Difference x {factor:.3g}"), strict=True):
            name = (axes.get_xlabel(), axes.get_ylabel())
            name_axes(axes, title, *name)
    return figure
