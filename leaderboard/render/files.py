"""Boards on disk: the form follows from the file's suffix."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench.errors import BenchError
from bench.leaderboard.render.board_data import VERSION, board_data, page_name, rankings
from bench.leaderboard.render.html import render_html, render_index
from bench.leaderboard.render.json_csv import render_csv, render_json
from bench.leaderboard.render.markdown import render
from bench.leaderboard.tables.build import build_table
from bench.results.file import EvaluationResult
from bench.results.metrics import Convention
from bench.system.files import followed, write_text, write_together

FORMS: Mapping[str, Callable[[Mapping[str, Any]], str]] = MappingProxyType(
    {".html": render_html, ".json": render_json, ".csv": render_csv}
)
"""Forms that hold results which do not compare, a board for each group; `.md` is one table, and holds one group."""


def require_form(path: Path) -> None:
    """Nothing, where a board can be written to a file of this name.

    Raises:
        BenchError: its suffix is not one of .html, .md, .csv and .json.
    """
    if path.suffix not in (*FORMS, ".md"):
        pages = " For a page each in this folder, add --folder." if path.is_dir() else ""
        raise BenchError(
            f"cannot write a board to {str(path)!r}: name a file that ends in .html, .md, .csv or .json.{pages}"
        )


def write_leaderboard(
    results: Sequence[EvaluationResult],
    path: Path,
    convention: Convention = "any",
    merge_seeds: bool = False,
    columns: Sequence[str] = (),
    rank_by: str | None = None,
) -> None:
    """Write results in the form that the suffix of `path` asks for; `columns` are those that `.md` shows, empty: all.

    Raises:
        BenchError: another suffix, results that cannot be shown, or a path that cannot be written.
    """
    require_form(path)
    write_text(followed(path), board_text(results, path.suffix, convention, merge_seeds, columns, rank_by))


def board_text(
    results: Sequence[EvaluationResult],
    suffix: str,
    convention: Convention = "any",
    merge_seeds: bool = False,
    columns: Sequence[str] = (),
    rank_by: str | None = None,
) -> str:
    """The text that `write_leaderboard` writes to a file of this suffix: `.md`, or one of `FORMS`.

    Raises:
        BenchError: results that cannot be shown.
    """
    if suffix == ".md":
        return render(build_table(results, convention, merge_seeds, columns, rank_by))
    return FORMS[suffix](board_data(results, convention, merge_seeds, rank_by))


def form_version(text: str, suffix: str) -> int | None:
    """The version of what a board says, as its text shows it: one before this program's, its own, or None: unknown."""
    stated = {
        ".md": (r"\A## .*, (?:ranked|ordered) by ", r"\A## .*\n\n\| *Rank \|"),
        ".csv": (r"\A[^\n]*,rank by,", r"\Adataset,suite,"),
    }
    if suffix in stated:
        newest, any_version = stated[suffix]
        return VERSION if re.search(newest, text) else 1 if re.search(any_version, text) else None
    found = re.search(r'"format": ?"bench-leaderboard",\s*"version": ?(\d{1,9})\b', text)
    return int(found[1]) if found else None


def write_folder(
    results: Sequence[EvaluationResult],
    folder: Path,
    convention: Convention = "any",
    merge_seeds: bool = False,
    rank_by: str | None = None,
) -> list[Path]:
    """Write a page for each dataset, threat model and suite version, and `index.html`, which links them.

    Returns:
        the paths written, the index first.

    Raises:
        BenchError: results that cannot be shown, no page with a column `rank_by`, or a folder that cannot be written.
    """
    if folder.is_file() or folder.suffix in (*FORMS, ".md"):
        raise BenchError(f"{str(folder)!r} is no folder for pages. Name a folder, or leave --folder out for one page.")
    pages: dict[str, list[EvaluationResult]] = {}
    for result in results:
        pages.setdefault(f"{page_name(result)}.html", []).append(result)
    names = sorted(pages)
    columns = rankings([pages[name] for name in names], convention, rank_by)
    found = {
        name: board_data(pages[name], convention, merge_seeds, column)
        for name, column in zip(names, columns, strict=True)
    }
    texts = {name: render_html(data) for name, data in found.items()}
    texts["index.html"] = render_index({name: data["boards"] for name, data in found.items()})
    write_together({folder / name: text.encode() for name, text in texts.items()})
    return [folder / name for name in ("index.html", *names)]
