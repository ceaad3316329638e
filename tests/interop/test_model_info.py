"""RobustBench's model_info files: written from a result whose numbers are known, read in both of their forms."""

import json
from dataclasses import replace

import pytest

from bench.interop import robustbench as robustbench_package
from bench.interop.model_info import ModelInfo, from_result, read_model_info, write_model_info
from bench.results.file import write_result
from bench.results.findings import finding
from tests.support.command import bench, refused
from tests.support.example_results import example
from tests.support.refusals import refusal
from tests.support.trainings import plug_in

# What every curated file of RobustBench's CIFAR-10 boards has; `autoattack_acc` on those of Linf and L2.
KEYS = (
    *("link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture", "eps"),
    *("clean_acc", "reported", "autoattack_acc"),
)
# In the curated form, of a paper that does not exist.
CURATED = {
    **{"link": "https://arxiv.org/abs/0000.00000", "name": "A paper", "authors": "A. One, B. Two"},
    **{"additional_data": True, "number_forward_passes": 1, "dataset": "cifar10", "venue": "ICML 2026"},
    **{"architecture": "WideResNet-34-10", "eps": "0.031", "clean_acc": "84.92", "reported": "56.4"},
    **{"autoattack_acc": "53.08", "external": "52.50", "unreliable": False},
    "footnote": "Uses 0.031 ≈ 7.9/255 instead of 8/255.",
}
AUTHORS = {"authors": "A. One"}


def cifar_result(**run):
    result = example()
    described = {"dataset": "cifar10", "training_data": {"name": "cifar10"}, "dataset_size": 10, **run}
    return replace(result, run={**result.run, **described})


def test_a_result_in_their_words():
    info, threat_model = from_result(cifar_result(), {"authors": "A. One", "venue": "ICML 2026"})
    # 80 % clean, 30 % under AutoAttack, 20 % under all three attacks: see tests/support/example_results.py.
    assert vars(info) == {
        **vars(ModelInfo()),
        **{"link": "https://arxiv.org/abs/1706.06083", "name": "AT", "authors": "A. One", "venue": "ICML 2026"},
        **{"additional_data": False, "number_forward_passes": 1, "dataset": "cifar10", "architecture": "ResNet-18"},
        **{"eps": "8/255", "clean_acc": "80.00", "reported": "30.00", "autoattack_acc": "30.00", "external": "20.00"},
    }
    assert threat_model == "Linf"
    assert info.robust_accuracy == 20


def test_what_is_written_has_their_keys_and_is_read_back(tmp_path):
    result = cifar_result()
    strongest = replace(result, attacks={"AA": result.attacks["AA"]}, suite={**result.suite, "derived": []})
    info, _ = from_result(strongest, AUTHORS)
    write_model_info(info, tmp_path / "m.json")
    written = json.loads((tmp_path / "m.json").read_text())
    assert tuple(written) == KEYS
    assert all(isinstance(written[key], str) for key in ("eps", "clean_acc", "reported", "autoattack_acc"))
    assert read_model_info(tmp_path / "m.json") == info


@pytest.mark.parametrize(
    ("curated", "accuracy"),
    [
        (CURATED, 52.5),
        ({**{key: CURATED[key] for key in KEYS[:-1]}, "eps": None, "corruptions_acc": "90.94"}, 90.94),
    ],
    ids=["linf", "corruptions"],
)
def test_a_curated_file_comes_back_as_it_was(tmp_path, curated, accuracy):
    (tmp_path / "m.json").write_text(json.dumps(curated))
    info = read_model_info(tmp_path / "m.json")
    assert (info.eps, info.reported, info.robust_accuracy) == (curated["eps"], "56.4", accuracy)
    write_model_info(info, tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == curated


@pytest.mark.parametrize(("eps", "text"), [(8 / 255, "8/255"), (0.031, "0.031"), (0.5, "0.5"), (4 / 255, "4/255")])
def test_what_benchmark_writes_is_read(tmp_path, monkeypatch, eps, text):
    monkeypatch.chdir(tmp_path)
    package = robustbench_package.load()
    enums = package.model_zoo.enums
    package.utils.update_json(enums.BenchmarkDataset.cifar_10, enums.ThreatModel.Linf, "Mine", 0.84921, 0.5, eps)
    info = read_model_info(tmp_path / "model_info" / "cifar10" / "Linf" / "Mine.json")
    assert info == ModelInfo(dataset="cifar10", eps=text, clean_acc="84.92", autoattack_acc="50.0")
    refusal(lambda: write_model_info(info, tmp_path / "m.json"), "all have link, name, authors, additional_data")


def test_their_own_table_shows_what_is_exported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_result(cifar_result(), "r.h5")
    arguments = ["export", "model-info", "r.h5", "--title", "A paper", "--venue", "ICML 2026", "--additional-data"]
    arguments += ["--authors", "A. One"]
    assert bench(*arguments) == (0, "model_info/cifar10/Linf/AT.json\n")
    package = robustbench_package.load()
    row = package.utils.get_leaderboard_latex("cifar10", "Linf")
    assert row == r"1 &\citet{AT} & 80.00 & 20.00 & Y & RN-18 & ICML 2026 & N/A\\"
    assert bench(*arguments)[0] == 0, "the same file is there"
    assert "exists: add --overwrite" in refused(*arguments, "--venue", "ICLR 2027")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], None),
        ([("monotone", "warning")], None),
        ([("blind-attacks", "passed"), ("monotone", "warning")], False),
        ([("blind-attacks", "passed"), ("attack-warning", "warning")], True),
        ([("not-deterministic", "error")], True),
    ],
)
def test_unreliable_is_what_autoattack_would_flag(found, expected):
    findings = tuple(finding(name, severity, "seen") for name, severity in found)
    assert from_result(replace(cifar_result(), findings=findings), AUTHORS)[0].unreliable is expected


def test_a_row_that_differs_from_the_board_says_so():
    result = cifar_result(dataset_size=10_000)
    attacks = {label: replace(record, epsilon="4/255") for label, record in result.attacks.items()}
    suite = {**result.suite, "threat": {"norm": "linf", "epsilon": "4/255"}}
    info, _ = from_result(replace(result, attacks=attacks, suite=suite), AUTHORS)
    assert info.footnote == "Uses Linf = 4/255 instead of 8/255. Evaluated on 10 of 10000 test images."


@pytest.mark.parametrize("precision", ["bf16", "fp32-folded"])
def test_a_search_in_another_precision_is_in_the_footnote(precision):
    info, _ = from_result(cifar_result(evaluation={"precision": precision}), AUTHORS)
    assert info.footnote == f"Attacks searched in {precision} and judged in fp32: robust accuracies are upper bounds."
    assert from_result(cifar_result(evaluation={"precision": "fp32"}), AUTHORS)[0].footnote is None


def test_what_robustbench_has_no_place_for_is_one_line():
    result = cifar_result()
    without = {label: record for label, record in result.attacks.items() if label != "AA"}
    refusal(lambda: from_result(replace(result, attacks=without), {}), "no AutoAttack column")
    told = "no board for digits under linf. It has: cifar10, cifar100 under linf, l2"
    refusal(lambda: from_result(cifar_result(dataset="digits"), {}), told)


def asked_for(run, **details):
    """The options that are asked for."""
    text = refusal(lambda: from_result(replace(cifar_result(), run=run), details), "the result does not say ")
    return text.partition(": give ")[2].removesuffix(".").split(", ")


def test_what_nobody_declared_is_unknown_and_asked_for():
    run = cifar_result().run
    assert asked_for(run) == ["--authors"]
    # Images of one's own; a defense of one's own, whose code may read what it likes; an older version's result.
    assert asked_for({**run, "training_data": {"name": "npz:more.npz"}}, **AUTHORS) == ["--[no-]additional-data"]
    others = ["--[no-]additional-data", "--forward-passes", "--reported"]
    assert asked_for({**run, "defense": "a-plug-in"}, **AUTHORS) == ["--link", *others]
    assert asked_for({**run, "augmentation_sha256": "a" * 64}, **AUTHORS) == others
    assert asked_for({key: value for key, value in run.items() if key != "training_data"}, **AUTHORS) == others
    # Weights in a file, and a model of RobustBench's zoo.
    bare = {key: run[key] for key in ("model", "dataset", "dataset_digest", "checkpoint_digest")}
    everything = ["--link", "--authors", "--[no-]additional-data", "--forward-passes", "--architecture", "--reported"]
    assert asked_for(bare) == everything
    assert asked_for({**bare, "source": "robustbench:X", "zoo": {"dataset": "cifar10"}}) == everything


def test_extra_images_are_additional_data_and_cannot_be_denied():
    run = cifar_result().run
    extra = {"name": "npz:1m.npz", "size": 1_000_000, "digest": "e" * 64}
    result = replace(cifar_result(), run={**run, "training_data": {**run["training_data"], "extra": extra}})
    assert from_result(cifar_result(), AUTHORS)[0].additional_data is False
    assert from_result(result, AUTHORS)[0].additional_data is True
    refusal(lambda: from_result(result, {**AUTHORS, "additional_data": False}), "extra images", "--no-additional-data")


def test_what_is_declared_is_taken(tmp_path):
    run = {key: cifar_result().run[key] for key in ("model", "dataset", "dataset_digest", "checkpoint_digest")}
    write_result(replace(cifar_result(), run=run), tmp_path / "r.h5")
    declared = ["--link", "https://a.example", "--authors", "A. One", "--no-additional-data", "--forward-passes", "32"]
    arguments = [*declared, "--architecture", "ViT", "--reported", "33.1", "--out", tmp_path / "m.json"]
    code, output = bench("export", "model-info", tmp_path / "r.h5", *arguments)
    assert code == 0, output
    info = read_model_info(tmp_path / "m.json")
    assert (info.link, info.authors, info.additional_data) == ("https://a.example", "A. One", False)
    assert (info.number_forward_passes, info.architecture, info.reported) == (32, "ViT", "33.1")
    assert info.autoattack_acc == "30.00"


def test_a_plug_in_that_is_here_has_a_citation_and_its_code_is_not_vouched_for(monkeypatch):
    class Mine:
        paper = "Mine, https://mine.example, eq. 1"

    plug_in(monkeypatch, "mine", Mine)
    others = ["--[no-]additional-data", "--forward-passes", "--reported"]
    assert asked_for({**cifar_result().run, "defense": "mine"}, **AUTHORS) == others


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds no JSON object"),
        ("{", "cannot be read"),
        ('{"clean_acc": "843"}', "clean_acc '843' is not a percentage"),
        ('{"clean_acc": "many"}', "clean_acc 'many' is not a number"),
        ('{"eps": "8/0"}', "eps '8/0' is not a number"),
        ('{"name": ["a"]}', "name is ['a'], no text or number"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "m.json").write_text(content)
    refusal(lambda: read_model_info(tmp_path / "m.json"), message)
