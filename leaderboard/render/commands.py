"""The commands that make a result again, from what its file records; no path of the machine that made it remains."""

import re
import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from bench.leaderboard.wording.paths import without_folders
from bench.results.comparison import corrupted_set
from bench.results.file import EvaluationResult
from bench.results.trainings import given_options, own_recipe, recorded_setting, run_place
from bench.text import setting_text

_CARRIED = (
    *("--plugin", "--model", "--weights", "--name", "--dataset", "--classes", "--suite", "--limit", "--eps", "--seed"),
    *(
        "--preprocessing",
        "--sampling",
        "--batch-size",
        "--convention",
        "--precision",
        "--adaptive",
        "--transfer",
        "--probes",
        "--threat-model",
    ),
)
"""Options of `bench eval` that the outcome depends on; folders, device and processes are each reader's own."""


def commands(result: EvaluationResult) -> list[str]:
    """`bench train` where the training is recorded, `bench data corrupt` where that made the images, `bench eval`.

    Every word is quoted for a shell.
    """
    given = _given(str(result.run.get("command", "")))
    training = _training(result.run, [value for name, value in given if name == "--plugin"])
    folder = _run_folder(result.run)
    options = given or _options(result)
    if training:
        options = [(name, value) for name, value in options if name != "--model"]
    which = result.run.get("checkpoint")
    subject = [folder + (f"/{which}" if which in ("best", "average") else "")] if training else []
    corrupting = _corrupting(result)
    images = ["--corruptions-dir", corrupting[corrupting.index("--out") + 1]] if corrupting else []
    evaluation = ["bench", "eval", *subject, *(word for option in options for word in option), *images]
    return [shlex.join(map(without_folders, words)) for words in (training, corrupting, evaluation) if words]


def verification(result: EvaluationResult) -> list[str]:
    """The commands that verify a result's file and the board it is on, with the places of both left to the reader."""
    run = result.run
    trained = ["--checkpoint", _run_folder(run)] if _training(run, []) else []
    return [shlex.join(["bench", "verify", "RESULT.h5", *trained]), "bench verify *.h5 --board BOARD.html"]


def address(run: Mapping[str, Any]) -> str | None:
    """The page of the weights on a hub; None: they are on none."""
    found = re.fullmatch(r"hf:([A-Za-z0-9][\w.-]*/[\w.-]+)", str(run.get("source", "")), re.ASCII)
    return f"https://huggingface.co/{found[1]}" if found else None


def _corrupting(result: EvaluationResult) -> list[str]:
    """The words that generate the corrupted images; none where they are the published files."""
    given = corrupted_set(result)
    if not given.get("generated"):
        return []
    dataset = without_folders(result.run.get("dataset"))
    folder = f"{PurePath(dataset.rpartition(':')[2]).name.removesuffix('.npz')}-C"
    words = ["bench", "data", "corrupt", "--dataset", dataset, "--out", folder]
    words += ["--limit", str(len(result.label))] if len(result.label) < result.run.get("dataset_size", 0) else []
    return [*words, "--seed", str(given.get("generator", {}).get("seed", 0))]


def _training(run: Mapping[str, Any], plugins: list[str]) -> list[str]:
    data = run.get("training_data", {})
    if "defense" not in run or "name" not in data:
        return []
    words = ["bench", "train", *(word for path in plugins for word in ("--plugin", path))]
    words += ["--defense", str(run["defense"]), "--dataset", str(data["name"])]
    recipe = own_recipe(run)
    words += ["--recipe", str(recipe.get("file", recipe["name"]))] if recipe else []
    for option, value in ((name, run.get(name)) for name in ("backbone", "seed", "precision")):
        words += [] if value is None else [f"--{option}", str(value)]
    words += ["--start", str(run["start"].get("path"))] if run.get("start") else []
    # The file does not say how many images there were to train on, only how many it were.
    words += ["--limit-train", str(data["train_size"])] if "train_size" in data else []
    if data.get("classes_from") == "option":
        kept = data.get("kept_classes", [])
        words += ["--classes", setting_text(data.get("class_names") or kept) if kept else str(data.get("num_classes"))]
    words += ["--preprocessing", str(data["preprocessing"])] if "preprocessing" in data else []
    words += ["--extra", str(data["extra"].get("name"))] if "extra" in data else []
    for name, value in sorted(run.get("hyperparameters_given", {}).items()):
        words += ["--set", f"{name}={str(value).lower() if isinstance(value, bool) else setting_text(value)}"]
    words += ["--named-by", ",".join(recorded_setting(run))] if recorded_setting(run) else []
    return [*words, *given_options(run)]


def _run_folder(run: Mapping[str, Any]) -> str:
    """The folder that `bench train` puts the run in unless told otherwise."""
    dataset = without_folders(run.get("training_data", {}).get("name"))
    named = (dataset, str(run.get("backbone")), own_recipe(run).get("name"), str(run.get("defense")))
    return f"runs/{run_place(*named, recorded_setting(run), run.get('seed'))}"


def _given(command: str) -> list[tuple[str, str]]:
    """Options of a recorded `bench eval` that are carried over, with their values."""
    try:
        words = shlex.split(command)
    except ValueError:
        return []
    found = []
    for number, word in enumerate(words[2:] if words[1:2] == ["eval"] else [], start=3):
        name, separator, value = word.partition("=")
        if name in _CARRIED and (separator or number < len(words)):
            found.append((name, value if separator else words[number]))
    return found


def _options(result: EvaluationResult) -> list[tuple[str, str]]:
    """The same, where no command is recorded."""
    evaluation = result.run.get("evaluation", {})
    limited = {"limit": len(result.label)} if len(result.label) < result.run.get("dataset_size", 0) else {}
    wanted = {"suite": result.suite.get("name"), **limited}
    wanted |= {name: evaluation[name] for name in ("seed", "convention", "precision") if name in evaluation}
    return [(f"--{name}", str(value)) for name, value in wanted.items()]
