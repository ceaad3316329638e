"""Explanations of marks, of the order of checks, and of terms: `bench explain`, docs/trust.md and docs/terms.md."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from bench.results.findings import CHECKS

MARKED: Mapping[str, str] = MappingProxyType(
    {
        "passed": "the check looked, and found nothing",
        "note": "worth knowing; the number stands, and the row still shows ✓",
        "warning": "the number may be too high; the row carries a footnote",
        "error": "the number cannot be believed; the row is shown last, unranked, and `bench trust` exits with 1",
        "unchecked": "nothing looked at the model: a file without a report, or `--probes 0`",
    }
)
"""The meaning of a severity's mark, for a check and for the row on a board."""


@dataclass(frozen=True)
class Stage:
    """Checks that are to be repaired before those of the next stage."""

    title: str
    text: str
    """Names every check of the stage, in backticks."""

    @property
    def checks(self) -> list[str]:
        """Their names, in the order of the text."""
        return [name for name in re.findall(r"`([^`]+)`", self.text) if name in CHECKS]


STAGES: tuple[Stage, ...] = (
    Stage(
        "The inputs",
        "`pixel-range`, `normalisation`, `class-shares`, `extra-data`, `near-chance`. With the wrong inputs a radius "
        "means nothing; of a model that was trained on test images, no number does.",
    ),
    Stage(
        "The forward pass",
        "`unmeasured`, `train-mode`, `not-deterministic`, `own-draws`, `batch-dependent`, `gradient-mode`, `stateful`, "
        "`non-finite-logits`, `model-changed`, `zero-radius`. If the model fails on some images, a part of this report "
        "is missing; if an image's prediction is not a function of that image, no verdict is.",
    ),
    Stage(
        "What gradients there are",
        "`probabilities`, `dynamic`, `gradients-margin`, `finite-differences`, `gradient-path`, "
        "`non-finite-gradients`. Without them every gradient attack reports robustness that is not there. "
        "`masked-gradients` is the sum: two checks, each in its own way, see gradients that lead nowhere.",
    ),
    Stage(
        "Whether the attacks worked",
        "`attack-outside-ball`, `unconfirmed-success` and `attack-warning` speak of an attack; repair it first, if it "
        "is your own. `worst-case` is what stands under the suite and should not; `nothing-broken` and "
        "`unknown-images` say that the model knows these images. Then `unbounded-attack`, then `random-search` and "
        "`blind-attacks`, then `ensemble` and `stage`, which say that an ensemble lost images, then `single-step`, "
        "`stronger-attack` and `monotone`. An attack free to choose any image must reach 0 %. One of these alone is "
        "masked gradients until shown otherwise.",
    ),
    Stage(
        "Whether they were enough",
        "`loss-gap`, `cascade-gap`, `gradients-cross-entropy`, `more-steps`, `more-draws`, `adaptive-attack`. The "
        "model may be fine; read the stronger column (C&W, AutoAttack, the longest PGD), never the weaker one.",
    ),
    Stage(
        "The file",
        "`threat-model`, `every-attack`, `budget`. Not written by `bench eval` as it is: evaluate again.",
    ),
    Stage(
        "The training, where it was watched",
        "`catastrophic-overfitting`, `robust-overfitting`. The checkpoint is what the number says; another training, "
        "or another epoch, would be better.",
    ),
)
"""In the order in which faults are to be repaired: one upstream raises checks downstream, some of them false."""

TERMS: Mapping[str, str] = MappingProxyType(
    {
        "adaptive": "An attack that ascends a loss made for the defense it attacks: `--adaptive FILE.py:FUNCTION`, "
        "and the adaptive columns of suite `table8`.",
        "autoattack": "Four attacks one after the other, each on the images that the former left standing: APGD on "
        "cross-entropy, APGD on the targeted DLR loss, FAB and Square. The number to quote and to compare.",
        "avg": "On a board, the mean of Clean and AutoAttack; `Avg Acc N` is the mean over N corruptions.",
        "bold": "A bold number is significantly better than every other row in its column.",
        "checkpoint": "The weights of a training: `last` is the last epoch, `best` the best one on held-out images "
        "(`--holdout N`), `average` averaged weights (`--average ema` or `swa`).",
        "clean": "The share of test images that the model is right about as they are.",
        "cluster": "`bench sweep --engine ray` or `--engine slurm` gives every training and evaluation to a node; "
        "`--shards N` cuts an evaluation. Each job writes only its own folder, so that any of them can stop and go on. "
        "`--slurm NAME=VALUE` is passed to sbatch, `--address` names a running Ray.",
        "convention": "Under `any` an image is broken once any step of the attack fooled the model; under `final` only "
        "the attack's last image counts. Both are stored, and boards show one.",
        "corruptions": "Images changed by noise, blur, weather and digital faults at severities 1 to 5, without an "
        "attacker. Suite `corruptions` reads them, `bench data corrupt` makes them.",
        "dagger": "A number behind † refers to a note below the board: what is particular about this row.",
        "ensemble": "A column that holds per image the worst case over the attacks that the suite names for it.",
        "extra": "Images that a model was trained on beside the dataset's own; boards name them, and each is compared "
        "with the test images.",
        "features": "What suite `features` measures: how well the features of clean and of attacked images separate "
        "classes. They are no accuracies, and have no ranks.",
        "interval": "± is half the width of a 95 % interval: over test images (Wilson), and of a mean over training "
        "seeds over these as well. Where that would leave 0 to 100, both bounds are shown.",
        "norm": "How the size of a perturbation is measured: linf the largest change of a pixel's channel, l2 the "
        "Euclidean length, l1 the sum of all changes.",
        "plan-file": "A TOML file that says what `bench sweep` runs: datasets, defenses, seeds, and under [grid], "
        "[settings] and [resources.train] the values to vary, the ones to keep, and what each job is given. Options "
        "beside it take the place of what it says.",
        "precision": "The numbers that attacks search in: fp32, tf32 or bf16, with BatchNorm folded in fp32-folded. "
        "Every success is confirmed in plain float32, whatever found it.",
        "probes": "The images, 64 unless told otherwise, on which the trust report looks at the model itself.",
        "radius": "The largest perturbation allowed, in units of a pixel's range [0, 1]: 8/255 under linf on CIFAR. "
        "Recorded exactly as it was written; `--eps 4/255` or `--eps l2=0.5` asks for another.",
        "rank": "Every place that a row may have, all rows together with 95 %: rows that cannot be told apart share "
        "ranks such as 1-4. Exact McNemar tests of all pairs, with Holm's correction.",
        "recipe": "Every number of a training, under a name and a version: `bench list recipes`. An option replaces "
        "one number, and the record says so.",
        "result-file": "An HDF5 file (.h5) with a prediction for each image and attack, the threat model, the settings "
        "and the trust report. Every table is computed from it again. FORMAT.md, beside `bench/results` in the "
        "package, describes each part.",
        "robust-accuracy": "The share of test images that the model is right about and no attack breaks. Wrong images "
        "count as broken. It is an upper bound: a better attack may break more.",
        "run-folder": "What `bench train` writes: `last/model.safetensors`, `history.jsonl`, `training_state.pt`, "
        "which `--resume` reads, and results.",
        "sampling": "Which N images `--limit N` takes: the first, or of each class its share. The same for everyone.",
        "seed": "The number from which a training's initialisation, order and attacks follow. Rows of several seeds "
        "show a mean, with an interval over seeds and images.",
        "suite": "Attacks with all their settings, under a name and a version: `bench list suites`. Only results of "
        "one suite and version share a board.",
        "threat-model": "What an attacker may do: a norm and a radius. A robust accuracy without one means nothing.",
        "transfer": "Images crafted against another model and tried on this one: `--transfer RUN`.",
        "trust-report": "What every evaluation ends with: checks of whether the attacks worked. `bench trust FILE` "
        "shows it.",
        "unranked": "A row with an error in its trust report: shown last, without a rank, because its number cannot be "
        "believed.",
        "worst-case": "Per image the worst over all attacks of the suite, of all norms; with a norm in brackets, over "
        "those of that norm.",
    }
)
"""Words of boards, pages and commands, in plain sentences."""
