"""Help that fits, and the right name for what other programs call otherwise."""

import re

import click
import pytest

from bench.cli import _commands, group


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        (["train", "--lr", "0.1"], "--learning-rate"),
        (["train", "--wd=0.1"], "--weight-decay"),
        (["train", "--scheduler", "cosine"], "--schedule"),
        (["train", "--optim", "sgd"], "--optimizer"),
        (["train", "--batch", "8"], "--batch-size"),
        (["train", "--batch_size", "8"], "--batch-size"),
        (["train", "--eps", "8/255"], "--epsilon"),
        (["train", "--model", "resnet18"], "--backbone"),
        (["sweep", "--lr", "0.1"], "--learning-rate"),
        (["eval", "--epsilon", "8/255"], "--eps"),
        (["eval", "--norm", "l2"], "--eps NORM=VALUE"),
        (["eval", "--attack", "pgd"], "--suite"),
        (["eval", "--arch", "resnet18"], "--model"),
    ],
)
def test_a_name_from_elsewhere_leads_to_ours(bench, words, ours):
    code, output = bench(*words)
    name = words[1].partition("=")[0]
    assert (code, output.splitlines()[-1]) == (2, f"Error: No such option '{name}'. Here it is {ours}.")


def test_a_slip_of_spelling_is_answered_as_ever_and_a_wrong_optimizer_with_the_right_ones(bench):
    assert "Did you mean '--epochs'?" in bench("train", "--epcohs", 3)[1]
    assert (
        "is not one of sgd, adamw" in bench("train", "--defense", "at", "--dataset", "digits", "--optimizer", "adm")[1]
    )


def commands():
    return [(name, group.get_command(click.Context(group), name)) for name in ("train", "eval", "sweep")]


def test_every_usual_name_leads_to_an_option_that_there_is():
    flags = {flag for _, command in commands() for parameter in command.params for flag in parameter.opts}
    named = {ours.split()[0] for names in _commands.USUAL_NAMES.values() for ours in names}
    assert named <= flags


def test_help_shows_ten_options_first_and_all_of_them_in_groups(bench, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name, command in commands()[:2]:
        options = [parameter.opts[-1] for parameter in command.params if isinstance(parameter, click.Option)]
        short, whole = (bench(name, flag)[1] for flag in ("--help", "--help-all"))
        whole = whole[whole.index("\nWhat:\n") :]
        section = short.partition("Options that matter first:\n")[2].partition("\n\n")[0]
        first = re.findall(r"^  (--[a-z-]+)", section, re.M)
        assert len(first) == len(set(first)) == 10 == len(command.first)
        assert f"\n  bench {name} " in short and short.rstrip().endswith(f"{name} --help-all")
        shown = re.findall(r"^  (?:-h, )?(--[a-z0-9-]+)", whole, re.M)
        hidden = {parameter.opts[-1] for parameter in command.params if getattr(parameter, "hidden", False)}
        assert sorted(shown) == sorted({flag.replace("_", "-") for flag in options} - hidden | {"--help"})
        titles = re.findall(r"^(\w+):$", whole, re.M)
        assert titles == [*command.groups, "Other"]
        assert re.findall(r"--[a-z-]+", whole.partition("\nOther:\n")[2]) == ["--help-all", "--help"]
