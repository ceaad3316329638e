"""The commands that make a result again: by hand, and as the command line reads them."""

import shlex
from typing import Any

import click
import pytest

from bench.cli import group
from bench.leaderboard.render.commands import address, commands, verification
from bench.leaderboard.wording.paths import without_folders
from tests.support.example_boards import FEW
from tests.support.example_results import RUN, corrupted, example, with_run

TRAINED: dict[str, Any] = {
    **RUN,
    "training_data": {"name": "digits", "train_size": 1297},
    "hyperparameters_given": {"beta": "4", "name": "a b"},
    "protocol_given": {"epochs": "5", "flip": False, "milestones": [3, 4]},
    "checkpoint": "best",
    "command": "bench eval /home/me/runs/x/best --suite=full --eps 8/255 --eps l2=0.5 --device cuda:1 "
    "--adaptive ~/lab/loss.py:mine --out /home/me/x.h5 --data /data",
}


def parse(line: str) -> None:
    """Nothing, where the command line takes a line; its own refusal where it does not."""
    words = shlex.split(line)[1:]
    command: Any = group
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), words.pop(0))
    assert command.make_context("bench", words).params


def test_commands_that_make_a_result_again() -> None:
    lines = commands(with_run(example(), **TRAINED))
    assert lines == [
        "bench train --defense at --dataset digits --backbone resnet18 --seed 0 --limit-train 1297 --set beta=4 "
        "--set 'name=a b' --epochs 5 --no-flip --milestones 3,4",
        "bench eval runs/digits/resnet18/at/seed-0/best --suite full --eps 8/255 --eps l2=0.5 --adaptive loss.py:mine",
    ]
    for line in lines:
        parse(line)


@pytest.mark.parametrize(("file", "given"), [({}, "mine"), ({"file": "my own.json"}, "'my own.json'")])
def test_commands_name_the_recipe_and_its_folder(file: dict[str, str], given: str) -> None:
    recipe = {"recipe": {"name": "mine", "version": 1, **file}}
    train, evaluate = commands(with_run(example(), **{**TRAINED, **recipe, "protocol_given": {}}))
    assert train.startswith(f"bench train --defense at --dataset digits --recipe {given} --backbone resnet18")
    assert evaluate.startswith("bench eval runs/digits/resnet18/mine/at/seed-0/best ")


@pytest.mark.parametrize(("which", "place"), [("last", ""), ("best", "/best"), ("average", "/average")])
def test_commands_name_the_checkpoint(which: str, place: str) -> None:
    _, evaluate = commands(with_run(example(), **{**TRAINED, "checkpoint": which}))
    assert evaluate.startswith(f"bench eval runs/digits/resnet18/at/seed-0{place} ")


def test_commands_are_quoted_and_need_no_recorded_one() -> None:
    wicked = with_run(example(), command="bench eval --model 'a.py:f; rm -rf ~' --suite quick")
    assert commands(wicked) == ["bench eval --model 'a.py:f; rm -rf ~' --suite quick"]
    bare = with_run(example(), command="", dataset_size=500, evaluation={"seed": 3, "convention": "final"})
    assert commands(bare) == ["bench eval --suite tiny --limit 10 --seed 3 --convention final"]
    assert commands(with_run(example(), command="bench eval 'unclosed")) == ["bench eval --suite tiny"]


def test_a_trained_model_is_verified_with_the_folder_that_the_training_makes() -> None:
    trained = with_run(example(), training_data={"name": "digits"})
    assert verification(trained)[0] == "bench verify RESULT.h5 --checkpoint runs/digits/resnet18/at/seed-0"
    assert address(trained.run) is None and address({"source": "hf:a/b"}) == "https://huggingface.co/a/b"
    assert [address({"source": source}) for source in ("hf:local", "timm:a/b", "hf:a/b?c", "hf:../b")] == [None] * 4


def test_commands_generate_the_images_again() -> None:
    made = {"name": "digits-C-gen1", "generated": True, "digest": "f" * 64, "generator": {"version": 1, "seed": 3}}
    run = {"corruptions": made, "dataset_size": 500, "command": "bench eval x --suite corruptions --limit 10"}
    lines = commands(corrupted(FEW, **run))
    assert lines == [
        "bench data corrupt --dataset digits --out digits-C --limit 10 --seed 3",
        "bench eval --suite corruptions --limit 10 --corruptions-dir digits-C",
    ]
    for line in lines:
        parse(line)
    whole = commands(corrupted(FEW, **{**run, "dataset_size": 10, "dataset": "npz:/home/me/my set.npz"}))
    assert whole[0] == "bench data corrupt --dataset 'npz:my set.npz' --out 'my set-C' --seed 3"
    published = commands(corrupted(FEW, command="bench eval x --suite corruptions"))
    assert published == ["bench eval --suite corruptions"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("/home/me/x.npz", "x.npz"),
        ("npz:/home/me/x.npz", "npz:x.npz"),
        ("--model=/a/b.py:f", "--model=b.py:f"),
        ("~/x.pt", "x.pt"),
        ("../../x.pt", "x.pt"),
        (r"C:\Users\me\x.pt", "x.pt"),
        ("runs/digits/at", "runs/digits/at"),
        ("8/255", "8/255"),
        ("l2=128/255", "l2=128/255"),
    ],
)
def test_no_folder_of_a_machine_remains(word: str, expected: str) -> None:
    assert without_folders(word) == expected
