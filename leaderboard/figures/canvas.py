"""The ground of all figures: colours and marks that survive colour blindness and grey print, plain text, equal bytes.

matplotlib is imported when a figure is made. Neither pyplot nor a person's matplotlibrc has a say in the outcome, and
matplotlib's settings are afterwards as they were.
"""

import io
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from bench.errors import BenchError
from bench.system.files import followed, write_together
from bench.text import one_line

if TYPE_CHECKING:
    import matplotlib.figure

Figure: TypeAlias = "matplotlib.figure.Figure"
Layout: TypeAlias = Literal["constrained", "compressed"]

COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442"),
    *("#999999", "#882255"),
)
"""Okabe & Ito 2008 (https://jfly.uni-koeln.de/color/), then grey and wine: ten classes are usual."""
# Eleven marks and seven hatches: coprime to ten colours, so that a combination recurs only after 110 and 70 series.
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
HATCHES = ("", "////", "..", "\\\\\\\\", "xx", "++", "--")
SHORT_NAME = 18
"""Characters of a class name that fit below an image."""
LONGEST_NAME = 48
"""Characters shown of a name: with more, a legend leaves no room for its figure."""

_STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "lines.markersize": 4.5,
    # Letters become outlines, so a figure looks the same where the font is missing; identifiers need a fixed salt.
    "svg.fonttype": "path",
    "svg.hashsalt": "advbench",
}


@contextmanager
def house_style() -> Iterator[None]:
    """The defaults of matplotlib and this project's style, until the block ends."""
    import matplotlib

    settings: Any = {name: value for name, value in matplotlib.rcParamsDefault.items() if "backend" not in name}
    with matplotlib.rc_context(settings | _STYLE):
        yield


def new_figure(rows: int, columns: int, width: float, height: float, layout: Layout = "constrained") -> tuple[Any, Any]:
    """A figure of `width` x `height` inches, and its axes as an array [rows, columns].

    The layout `compressed` moves panels of a fixed shape together.
    """
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(width, height), layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False)


def colour(number: int) -> str:
    """The colour of a series, by its number from 0."""
    return COLOURS[number % len(COLOURS)]


def colour_and_mark(number: int) -> dict[str, Any]:
    """The colour and mark of a line, by its number from 0."""
    return {"color": colour(number), "marker": MARKS[number % len(MARKS)]}


def plain(text: object, longest: int = LONGEST_NAME) -> str:
    """One line of printable text, shortened to `longest` characters. Draw it with parse_math=False: $ is a dollar."""
    line = one_line(text)
    return line if len(line) <= longest else line[: longest - 1] + "…"


def name_axes(axes: Any, title: object = "", x: str = "", y: str = "") -> None:
    """Title and axis labels, as plain text."""
    axes.set_title(plain(title), parse_math=False)
    axes.set_xlabel(x, parse_math=False)
    axes.set_ylabel(y, parse_math=False)


def show_image(axes: Any, image: Any) -> None:
    """An array (channel, row, column) of pixels, cut off at 0 and 1, on axes without ticks."""
    pixels = image.clip(0.0, 1.0).transpose(1, 2, 0)
    axes.imshow(pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def legend_width(names: Sequence[object]) -> float:
    """Inches that one column of a legend takes, about."""
    return 0.6 + 0.085 * max(len(plain(name)) for name in names)


def add_legend(figure: Any, handles: Sequence[Any], names: Sequence[object], place: str, columns: int) -> None:
    """A legend beside the panels, its names as plain text."""
    # matplotlib leaves out labels that begin with an underscore, so the names are put in afterwards.
    legend = figure.legend(handles, [str(number) for number in range(len(names))], loc=place, ncols=columns)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(plain(name))


def write_figure(figure: Figure, path: str | Path) -> tuple[Path, Path]:
    """Write `path`.png (150 dots per inch) and `path`.svg, each at once; equal figures become equal bytes.

    Args:
        figure: what to write.
        path: without suffix; what follows a dot in it is part of the name.

    Raises:
        BenchError: a file cannot be written.
    """
    stem = Path(path)
    files = stem.parent / f"{stem.name}.png", stem.parent / f"{stem.name}.svg"
    contents = {}
    for file, metadata in zip(files, ({"Software": None}, {"Date": None, "Creator": None}), strict=True):
        drawn = io.BytesIO()
        with house_style():
            figure.savefig(drawn, format=file.suffix[1:], dpi=150, metadata=metadata)
        contents[followed(file)] = drawn.getvalue()
    write_together(contents)
    return files


def require(condition: bool, message: str) -> None:
    """Raise a BenchError with this message unless the condition holds."""
    if not condition:
        raise BenchError(message)


def require_some(kind: str, items: Sized) -> None:
    """Raise a BenchError unless there is at least one item of a kind."""
    require(len(items) > 0, f"there is no {kind} to draw. Give at least one.")
