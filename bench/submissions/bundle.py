"""A row as others send it: a folder of plain files, none of which is executed, and their digests.

    bundle.json               {"format": "bench-bundle", "version": 1, "files": {NAME: {"bytes", "sha256"}}}
    result.h5                 the row
    result.adversarials.h5    the image behind every broken sample
    README.md                 a model card with the row on it
    provenance.json           {"row", "model", "submitted_by", "link", "created", "program"}
    recipe.json               how it was trained, as `bench train --recipe` takes it; absent: that is not recorded
    model.safetensors         the checkpoint; absent: whoever checks the row names the model

A reader opens these names and no other, whatever bundle.json lists, and looks into no file before its digest is right.
"""

import hashlib
import json
import re
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench
from bench.catalogue.names import ADVERSARIALS, CHECKPOINTS, short_name
from bench.engine.adversarials import adversarials_path, owner_of
from bench.errors import BenchError
from bench.interop.model_cards import card
from bench.models.checkpoints import find_checkpoint, load_checkpoint
from bench.results.board_rows import MANIFEST
from bench.results.file import EvaluationResult, content_digest, read_result
from bench.results.trainings import recorded_protocol, recorded_recipe
from bench.system.budgets import read_json, read_text
from bench.system.files import require_writable_folder, write_text, write_whole
from bench.text import escape, one_line, time_text

FORMAT, VERSION = "bench-bundle", 1
RESULT, IMAGES, CARD, PROVENANCE = "result.h5", f"result{ADVERSARIALS}", "README.md", "provenance.json"
RECIPE, MODEL = "recipe.json", "model.safetensors"
NEEDED, OPTIONAL = (RESULT, IMAGES, CARD, PROVENANCE), (RECIPE, MODEL)
_READ_AT_ONCE = 2**20


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are those that it lists."""

    folder: Path
    digest: str
    """SHA-256 (hex) of bundle.json, which holds those of the other files."""
    files: tuple[str, ...]


def row_name(result: EvaluationResult) -> str:
    """What a file or folder of a row is called: model, dataset, suite and the start of the result's digest."""
    run = result.run
    words = (
        run.get("model"),
        short_name(str(run.get("dataset"))),
        result.suite.get("name"),
        content_digest(result)[:8],
    )
    return re.sub(r"[^\w.+=-]+", "_", "-".join(map(str, words)), flags=re.ASCII)[-120:].lstrip("._-")


def own_checkpoint(row: Path, result: EvaluationResult) -> Path | None:
    """The checkpoint that a result in the folder `results` of a run is of; None where there is none."""
    place, which = row.resolve().parent, result.run.get("checkpoint")
    if place.name != "results" or which not in CHECKPOINTS or not (place.parent / which / MODEL).is_file():
        return None
    return place.parent / which


def write_bundle(
    row: Path, folder: Path, board: str, images: Path | None, checkpoint: Path | None, by: str, link: str = ""
) -> None:
    """Write a bundle; its list of files comes last, so that a folder without it is none.

    Args:
        row: a result file.
        folder: a new one.
        board: the row as Markdown.
        images: those behind the row's broken samples; None: those beside it.
        checkpoint: the row's model; None: it is not sent.
        by: who sends it.
        link: to a paper, code or weights.

    Raises:
        BenchError: the row cannot be checked by others, something is not the row's, or the folder cannot be written.
    """
    result = read_result(row)
    if not result.attacks or result.corruptions or result.features:
        raise BenchError(f"{row} is no row of attacks alone: nobody could check it by its images. Give such a result.")
    images = images or adversarials_path(row)
    if not images.is_file():
        raise BenchError(f"{row} has no images to show ({images}). Evaluate again with --save-adversarials.")
    if owner_of(images) != content_digest(result):
        raise BenchError(f"{images} belongs to another result. Evaluate again with --save-adversarials.")
    sources = {RESULT: row, IMAGES: images}
    if checkpoint is not None:
        sources[MODEL] = find_checkpoint(checkpoint)
        if load_checkpoint(checkpoint).digest != result.run.get("checkpoint_digest"):
            raise BenchError(f"{checkpoint} is not the model of {row}. Give its checkpoint, or evaluate again.")
    new_folder(folder)
    for name, source in sources.items():
        copy(source, folder / name)
    texts = papers(result, checkpoint, board)
    about = {"submitted_by": one_line(by), "link": one_line(link), "program": bench.__version__, "created": time_text()}
    texts[PROVENANCE] = json_text({**identity(result), **about})
    for name, text in texts.items():
        write_text(folder / name, text)
    listed = {name: _described(folder / name) for name in sorted([*sources, *texts])}
    write_text(folder / MANIFEST, json_text({"format": FORMAT, "version": VERSION, "files": listed}))


def open_bundle(folder: Path) -> Bundle:
    """The bundle in a folder, every file of it looked at.

    Raises:
        BenchError: it is none, a file is missing, changed, or something that no bundle holds.
    """
    listed = _listed(folder)
    there = {path.name for path in folder.iterdir()} - {MANIFEST}
    for name in sorted(there | listed.keys()):
        if name not in (*NEEDED, *OPTIONAL):
            raise BenchError(
                f"{name[:80]!r} is no file of a bundle. It holds: {', '.join((MANIFEST, *NEEDED, *OPTIONAL))}."
            )
    for name in NEEDED:
        if name not in listed or name not in there:
            raise BenchError(f"{name} is missing. Make the bundle again: bench submit ROW.h5.")
    for name in sorted(there ^ listed.keys()):
        where = "listed and not there" if name in listed else f"there and not listed in {MANIFEST}"
        raise BenchError(f"{name} is {where}. Make the bundle again: bench submit ROW.h5.")
    for name, stated in listed.items():
        if _described(folder / name) != stated:
            raise BenchError(f"{name} is not the file that {MANIFEST} lists: its size or digest differs.")
    return Bundle(folder, _described(folder / MANIFEST)["sha256"], tuple(sorted(listed)))


def _listed(folder: Path) -> Mapping[str, Any]:
    path = folder / MANIFEST
    try:
        _described(path)
        content = read_json(path)
        form, files = (content["format"], content["version"]), content["files"]
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        raise BenchError(
            f"{str(folder)!r} is no bundle: it has no readable {MANIFEST}. Make one: bench submit."
        ) from None
    if form != (FORMAT, VERSION) or not isinstance(files, dict):
        raise BenchError(f"{path} is not of {FORMAT} version {VERSION}. Give a folder that `bench submit` wrote.")
    return files


def papers(result: EvaluationResult, checkpoint: Path | None, board: str) -> dict[str, str]:
    """The texts of a bundle that follow from its row and model: whoever reads it can write them again."""
    recipe = _recipe(result)
    shown = _plain_card(result, board) if checkpoint is None else card(load_checkpoint(checkpoint), result, board)
    return {CARD: shown, **({RECIPE: json_text(recipe)} if recipe else {})}


def identity(result: EvaluationResult) -> dict[str, Any]:
    """What a bundle is of: the digests of the row and of its model."""
    return {"row": content_digest(result), "model": result.run.get("checkpoint_digest")}


def _recipe(result: EvaluationResult) -> dict[str, Any]:
    """The training as a recipe of one's own; empty: none is recorded."""
    run = result.run
    protocol = recorded_protocol(run)
    if not protocol or "backbone" not in run:
        return {}
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(run.get("defense"))).lstrip("._-") or "row"
    return {
        "name": f"{name}-{content_digest(result)[:8]}",
        "version": 1,
        "about": f"As {run.get('model')} was trained: {recorded_recipe(run)}",
        "settings": {"backbone": run["backbone"], **protocol},
    }


def _plain_card(result: EvaluationResult, board: str) -> str:
    """The card of a model that is no checkpoint of ours."""
    run = result.run
    facts = {name: run[name] for name in ("source", "adapters", "library", "revision", "zoo") if name in run}
    lines = "".join(f"- {name}: {escape(json.dumps(value, sort_keys=True))}\n" for name, value in facts.items())
    model, dataset, digest = (escape(run.get(name)) for name in ("model", "dataset", "checkpoint_digest"))
    about = f"An image classifier, evaluated on {dataset}. Digest of its weights: `{digest}`."
    return f"# {model}\n\n{about}\n\n{lines}\n{board.strip()}\n"


def read_provenance(bundle: Bundle) -> dict[str, Any]:
    """Who sent a bundle, of what, when.

    Raises:
        BenchError: provenance.json does not say it in texts.
    """
    try:
        content = read_json(bundle.folder / PROVENANCE)
        found = {name: content[name] for name in ("row", "model", "submitted_by", "link", "created", "program")}
    except (KeyError, TypeError, ValueError, RecursionError):
        found = {"row": None}
    if not all(isinstance(text, str) for text in found.values()):
        raise BenchError(f"{PROVENANCE} does not say who sent what. Make the bundle again: bench submit ROW.h5.")
    return found


def read_paper(bundle: Bundle, name: str) -> str | None:
    """The text of a file of a bundle; None: it has none, or one that is not UTF-8."""
    try:
        return read_text(bundle.folder / name) if name in bundle.files else None
    except ValueError:
        return None


def new_folder(folder: Path) -> None:
    """Make a folder; one that holds something already is refused."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BenchError(f"{str(folder)!r} exists and is not empty. Name another folder with --out.")
    require_writable_folder(folder)


def copy(source: Path, target: Path, replace: bool = True) -> None:
    """A file as another one, written whole."""
    write_whole(target, lambda temporary: shutil.copyfile(source, temporary), replace)


def json_text(value: Any) -> str:
    """JSON for people and git: indented, keys sorted."""
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def _described(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file; links, which may lead elsewhere, and devices are refused."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise BenchError(f"{path.name} is a link, a folder or a device, and no plain file. Send files alone.")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_AT_ONCE):
            digest.update(piece)
    return {"bytes": found.st_size, "sha256": digest.hexdigest()}
