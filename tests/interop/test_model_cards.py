"""A checkpoint as a folder for the Hugging Face Hub: the same checkpoint, and a card that the Hub can read."""

import json

import torch

from bench.interop.model_cards import card
from bench.models.checkpoints import Checkpoint, load_checkpoint
from bench.results.file import read_result, write_result
from tests.support.command import refused
from tests.support.example_results import with_run

CLEAN = ("--suite", "clean", "--probes", 0)


def test_the_folder_is_the_same_checkpoint(bench, digits_run, tmp_path):
    assert bench("export", "huggingface", digits_run, "card")[0] == 0
    files = sorted(path.name for path in (tmp_path / "card").iterdir())
    assert files == ["README.md", "config.json", "model.safetensors"]
    ours, theirs = load_checkpoint(digits_run), load_checkpoint(tmp_path / "card")
    assert ours.digest == theirs.digest
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(ours.build()(images), theirs.build()(images))
    assert json.loads((tmp_path / "card" / "config.json").read_text()) == ours.config
    results = []
    for number, model in enumerate([[digits_run], ["card"], ["--model", "card"]]):
        code, output = bench("eval", *model, *CLEAN, "--out", f"{number}.h5")
        assert code == 0, output
        results.append(read_result(f"{number}.h5"))
    assert {result.run["checkpoint_digest"] for result in results} == {ours.digest}
    assert len({result.clean_prediction.tobytes() for result in results}) == 1
    code, output = bench("verify", "0.h5", "--model", "card")
    assert code == 0, output
    before = sorted((tmp_path / "card").iterdir())
    assert bench("eval", "--model", "card", *CLEAN)[0] == 0
    assert read_result("results/card-clean-v1.h5").run["checkpoint_digest"] == ours.digest
    assert sorted((tmp_path / "card").iterdir()) == before


def test_the_hub_reads_the_card(bench, digits_run, tmp_path):
    from huggingface_hub import ModelCard

    assert bench("eval", digits_run, *CLEAN, "--out", "r.h5")[0] == 0
    assert bench("export", "huggingface", digits_run, "card", "--result", "r.h5")[0] == 0
    shown = ModelCard.load(tmp_path / "card" / "README.md")
    result = read_result("r.h5")
    correct = int((result.clean_prediction == result.label).sum())
    clean = shown.data.eval_results[0]
    assert (clean.dataset_type, clean.metric_name) == ("digits", "Clean accuracy")
    assert clean.metric_value == correct / 5  # percent of 500
    assert shown.data.tags == ["adversarial-robustness", "robustbench", "at"]
    # The Hub knows no digits; how the model was trained is the defense's to say.
    assert (shown.data.license, shown.data.datasets) == (None, None)
    checkpoint = load_checkpoint(digits_run)
    for text in (
        "Madry et al., ICLR 2018, https://arxiv.org/abs/1706.06083",
        f"Digest: `{checkpoint.digest}`",
        "| epoch | 3 of 3 |",
        "| epsilon | 0.15 |",
        "| attack steps | 10 |",
        "bench eval DIR --suite",
        "| 1 | at | ",
        "add `license: ...`",
    ):
        assert text in " ".join(shown.content.split()), text


def test_every_hyperparameter_is_on_the_card(digits_run):
    config = dict(load_checkpoint(digits_run).config)
    text = card(Checkpoint({**config, "defense": "trades", "hyperparameters": {"beta": 6.0}}, {}))
    assert "datasets:" not in text
    of_cifar = Checkpoint({**config, "dataset": {**config["dataset"], "name": "cifar10"}}, {})
    assert 'datasets: ["cifar10"]' in card(of_cifar)
    assert "| trades: beta | 6.0 |" in text
    assert "Zhang et al., ICML 2019" in text


def test_the_result_of_another_checkpoint_is_refused(bench, digits_run, tmp_path):
    assert bench("eval", digits_run, *CLEAN, "--out", "r.h5")[0] == 0
    result = read_result("r.h5")
    write_result(with_run(result, checkpoint_digest="0" * 64), "other.h5")
    line = refused("export", "huggingface", digits_run, "card", "--result", "other.h5")
    assert "is of another model (at, digest 000000000000)" in line
    assert not (tmp_path / "card").exists()


def test_nothing_is_replaced_unasked(bench, digits_run, tmp_path):
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "README.md").write_text("mine")
    assert "README.md exists: add --overwrite" in refused("export", "huggingface", digits_run, "card")
    assert (tmp_path / "card" / "README.md").read_text() == "mine"
    assert [path.name for path in (tmp_path / "card").iterdir()] == ["README.md"], (
        "all are checked before one is written"
    )
    assert bench("export", "huggingface", digits_run, "card", "--overwrite")[0] == 0
    assert (tmp_path / "card" / "README.md").read_text().startswith("---\nlibrary_name")
