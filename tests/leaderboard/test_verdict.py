"""The verdict on a result: every number counted by hand, in lines of 80 characters, and what to do next."""

from dataclasses import replace

import pytest

from bench.leaderboard.render.verdict import next_commands, verdict
from bench.leaderboard.wording.marks import trust_verdict
from bench.results.file import write_result
from tests.support.example_results import corrupted, example, featured, probed, robust, single, with_attack, with_run


def test_the_verdict_on_attacks() -> None:
    # Wilson's intervals of 8, 3, 6, 5, 4 and 2 of 10.
    assert verdict(probed(), 80) == (
        "AT: digits, linf 8/255, suite tiny version 1, 10 samples, convention any\n"
        "\n"
        "Clean        80.0 %  (95 % interval: 49.0 to 94.3)\n"
        "Robust       30.0 %  (95 % interval: 10.8 to 60.3)  AA, linf 8/255\n"
        "Broke most  AA, linf 8/255: 30.0 % left, 5 of the 8 right clean are broken\n"
        "\n"
        "Attack      Accuracy  95 % interval  Threat model\n"
        "----------  --------  -------------  ------------\n"
        "FGSM            60.0   31.3 to 83.2  linf 8/255\n"
        "PGD-20          50.0   23.7 to 76.3  linf 8/255\n"
        "AA              30.0   10.8 to 60.3  linf 8/255\n"
        "Ensemble        40.0   16.8 to 68.7  worst of 2\n"
        "Worst case      20.0    5.7 to 51.0  worst of 3\n"
    )


def test_the_verdict_without_autoattack_is_the_worst_case_and_says_what_is_unusual() -> None:
    searched = with_run(with_attack(example(), "AA", attack="pgd"), evaluation={"precision": "bf16"})
    text = verdict(searched, 80)
    assert "\nRobust       20.0 %  (95 % interval: 5.7 to 51.0)  Worst case\n" in text
    assert "\nBroke most  AA, linf 8/255: 30.0 % left" in text
    assert (
        "\n\nNote: attacks searched in bf16, every success judged in fp32" in text
        and max(map(len, text.splitlines())) <= 80
    )


def test_the_verdict_on_corruptions_features_and_clean_images() -> None:
    # fog 8 and 4, snow 6 and 2 of 10: 60 and 40 %, together 50.
    lines = verdict(corrupted({"fog": (8, 4), "snow": (6, 2)}), 80).splitlines()
    assert lines[0] == "AT: CIFAR-10-C, suite corruptions version 1, 10 samples"
    assert [line.split("(")[0].split() for line in lines[2:4]] == [["Clean", "80.0", "%"], ["Corrupted", "50.0", "%"]]
    assert lines[3].endswith("  Avg Acc 2")
    assert lines[4] == "Broke most  snow: 40.0 % left, all severities together"
    assert [line.split()[:3] for line in lines[8:]] == [["Severity", "1", "70.0"], ["Severity", "2", "30.0"]]
    shown = verdict(featured(), 80).splitlines()
    assert "Robust       30.0 %" in "\n".join(shown)
    assert "FDR/M² ↓ adv    0.005" in shown and "MinSep ↑         80.0" in shown
    assert verdict(single(True), 80).splitlines()[2:] == [
        "Clean       100.0 %  (95 % interval: 20.7 to 100.0)",
        "Robust      not measured: no attack is of the suite's main threat model",
    ]


def test_a_hostile_name_acts_on_nothing_in_the_verdict() -> None:
    evil = with_run(example(), model="A\x1b[31m\n" + "x" * 90)
    text = verdict(evil, 80)
    assert "\x1b" not in text and text.startswith("A [31m\nxxx")


@pytest.mark.parametrize(
    ("trust", "severities", "expected"),
    [
        ("passed", ["note"] * 3, "Trust: ✓ no error or warning (3 notes)"),
        ("warning", ["warning", "passed"], "Trust: ! the numbers may be too high (1 warning, 1 passed)"),
        ("error", ["error", "error", "note"], "Trust: ✗ the numbers cannot be believed (2 errors, 1 note)"),
        ("unchecked", [], "Trust: ? not checked (no trust report; evaluate again to get one)"),
    ],
)
def test_trust_is_one_line(trust: str, severities: list[str], expected: str) -> None:
    assert "".join(trust_verdict(trust, [{"severity": one} for one in severities])) == expected


def test_the_next_commands_name_a_result_that_compares(tmp_path) -> None:
    mine = tmp_path / "bb" / "at" / "seed-0" / "results" / "tiny-v1.h5"
    other = tmp_path / "bb" / "st" / "seed-0" / "results" / "tiny-v1.h5"
    for path in (mine, other):
        path.parent.mkdir(parents=True)
    write_result(example(), mine)
    alone = [f"bench trust {mine}", f"bench leaderboard {mine}"]
    assert next_commands(example(), mine) == alone
    (mine.parent / "damaged.h5").write_text("no result")
    write_result(replace(example(), suite={"name": "other", "version": 1}), mine.parent / "other-v1.h5")
    assert next_commands(example(), mine) == alone
    write_result(robust(example(), 5, model="ST"), other)
    files = f"{mine} {other}"
    assert next_commands(example(), mine) == [alone[0], f"bench leaderboard {files}", f"bench compare {files}"]
