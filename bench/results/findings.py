"""Findings: what was noticed about an evaluation, and what it means. The trust report of a result is a list of them.

A finding is a plain dictionary, so that a result file carries it whole:
`name`, `severity`, `value`, `threshold`, `message` (what was seen), `meaning` and `advice`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

Severity: TypeAlias = Literal["passed", "note", "warning", "error"]
Finding: TypeAlias = dict[str, Any]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note", "passed")
"""Worst first. `error`: the numbers cannot be believed, and the row is not ranked. `warning`: they may be too high."""


@dataclass(frozen=True)
class Check:
    """A question that the trust report answers."""

    meaning: str
    """The meaning of the check's firing."""
    advice: str
    where_gradients_hold: str | None = None
    """The advice where no check of `REFUTATIONS` fires: the network is as smooth as it says, and flat or rough."""


def finding(
    name: str, severity: Severity, message: str, value: Any = None, threshold: Any = None, advice: str | None = None
) -> Finding:
    """One finding, with the meaning of its check in `CHECKS`, and its advice, unless there is another one.

    The `message` says what was seen; `value` was measured, and compared with `threshold`.
    """
    check = CHECKS[name]
    return {
        "name": name,
        "severity": severity,
        "message": message,
        "value": value,
        "threshold": threshold,
        "meaning": check.meaning,
        "advice": advice or check.advice,
    }


def graded(error: bool = False, warning: bool = False, note: bool = False) -> Severity:
    """The worst severity that is given; `passed` where none is."""
    return "error" if error else "warning" if warning else "note" if note else "passed"


REFUTATIONS = frozenset({"gradient-mode", "gradients-margin", "finite-differences", "gradient-path"})
"""Checks that say something in forward or backward cuts or changes gradients."""
_SMALL_STEPS = (
    "gradients are right here, and small or rough: ascend the margin, with more steps and restarts; read autoattack"
)

CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "pixel-range": Check(
            "radii are in units of a pixel's range [0, 1]; other inputs make them mean something else",
            "give the dataset as integers 0 to 255 or floats in [0, 1], and normalise inside the model",
        ),
        "normalisation": Check(
            "the model does better on images that were normalised for it: it expects to be given those",
            "wrap it so that it normalises inside forward: then radii keep their meaning",
        ),
        "class-shares": Check(
            "the images have other classes, or other shares of them, than the test set: the numbers are not about it",
            "evaluate on all images or on more of them; shuffle a file that is sorted by class",
        ),
        "extra-data": Check(
            "the model was trained on extra images, and test images were among them or may have been",
            "train on the file that `bench data exclude` writes; `bench data nearest` shows how near the others come",
        ),
        "near-chance": Check(
            "the model hardly does better than guessing: its training diverged, or it expects other inputs",
            "look at the training history; a model is given pixels in [0, 1] and must normalise inside",
        ),
        "unmeasured": Check(
            "what is looked at after the attacks failed for a reason of its own: what it would have shown is not known",
            "repair what the message names (a model must take any number of images, one among them); evaluate again",
        ),
        "train-mode": Check(
            "layers in training mode (BatchNorm, dropout) make an image's outcome depend on chance or on its batch",
            "do not override train() or eval(); the evaluation calls model.eval()",
        ),
        "not-deterministic": Check(
            "an image that is right by a lucky draw counts as robust, and one unlucky draw counts as broken",
            "remove noise and dropout from forward in eval mode; a model that is random by design says `randomised = "
            "True`, draws from torch's own generator, and is evaluated under --suite eot",
        ),
        "own-draws": Check(
            "a model that declares itself random gives no image a draw of its own, so several draws are like one",
            "draw for every image of a batch; where answers never differ, no suite that draws is needed: choose linf",
        ),
        "batch-dependent": Check(
            "an image's prediction depends on the other images of its batch, so attacks and verdicts do not match",
            "use running statistics in BatchNorm, and no statistics over the batch in forward",
        ),
        "gradient-mode": Check(
            "the model answers otherwise when gradients are asked for: attacks search another model than is judged",
            "do not look at requires_grad or at torch.is_grad_enabled() in forward",
        ),
        "stateful": Check(
            "the model keeps something from one call to the next, so verdicts depend on what was shown before",
            "answer from the image alone: no counters, caches or running means in forward",
        ),
        "non-finite-logits": Check(
            "NaN is no answer, and attacks cannot follow the model there; clean, such images count as wrong, "
            "and one found by an attack counts as no success of it",
            "find the overflow: large logits, a division by a norm of 0, half precision",
        ),
        "model-changed": Check(
            "parameters or buffers changed while the model was evaluated (they were put back)",
            "find the layer that updates its state in eval mode, BatchNorm for one, and stop it",
        ),
        "zero-radius": Check(
            "an attack with radius 0 must leave every prediction as it is",
            "look for randomness or state in the model",
        ),
        "probabilities": Check(
            "a softmax hides gradients from attacks: cross-entropy of probabilities saturates",
            "return logits",
        ),
        "dynamic": Check(
            "an optimisation inside forward makes gradients unrepresentative and can adapt to the attack",
            "evaluate with an adaptive attack through the whole procedure; such rows are not comparable",
        ),
        "gradients-margin": Check(
            "gradients vanish or are not finite for every loss: no gradient attack can work on these images",
            "find what cuts, saturates or overflows in forward; until then trust attacks without gradients only",
        ),
        "finite-differences": Check(
            "gradients do not say how the logits change: something in forward is not what backward thinks it is",
            "look for rounding, thresholds or custom backward functions in forward",
        ),
        "gradient-path": Check(
            "gradients on the way to another image do not add up to the change of the margin: a part of it is hidden",
            "look for gradients that are cut, changed or too rough to follow, in forward or in custom backward",
        ),
        "non-finite-gradients": Check(
            "gradients were NaN or infinite; there they count as 0, so attacks saw only a part of the slope",
            "find what has no derivative there: a root of 0, a division by 0, both sides of torch.where",
        ),
        "masked-gradients": Check(
            "several checks, each in its own way, see gradients that lead nowhere: what stands is no robustness",
            "repair what the agreeing checks name, and evaluate again",
        ),
        "attack-outside-ball": Check(
            "an attack returned images outside the threat model; they were projected onto it before they counted",
            "repair the attack's own projection: what it finds outside the ball is wasted",
        ),
        "unconfirmed-success": Check(
            "successes that an attack claimed, or that were seen on the way, did not repeat in a later forward pass",
            "look for randomness or state in the model, and do not let the attack grade itself",
        ),
        "attack-warning": Check(
            "an attack reported something about the model itself",
            "see the documentation of the attack; for AutoAttack: https://github.com/fra31/auto-attack flags_doc.md",
        ),
        "worst-case": Check(
            "short, strong attacks break images that stand under the suite: its worst case is too high by as much",
            "repair what cuts or changes gradients, or attack past it (BPDA); quote autoattack meanwhile",
            _SMALL_STEPS,
        ),
        "nothing-broken": Check(
            "no attack breaks a single image: the radius is tiny, or labels of these images are in the model",
            "evaluate on images that nobody saw, and at larger radii, where every model must fall",
        ),
        "unknown-images": Check(
            "images that the suite asks about stand far more often than other images: the model knows them",
            "keep test images out of the model, and evaluate on new ones",
        ),
        "unbounded-attack": Check(
            "with every image in [0, 1] allowed, an attack that works reaches 0 %: its gradients lead nowhere",
            "the other numbers are probably too high as well; try attacks on a margin, and black-box ones",
            _SMALL_STEPS,
        ),
        "random-search": Check(
            "random images in the ball break what gradient attacks do not: masked gradients",
            "build an adaptive attack: replace what cuts or flattens the gradient (BPDA), ascend another loss",
            _SMALL_STEPS,
        ),
        "blind-attacks": Check(
            "attacks that see no gradients of this model break images that gradient attacks do not: masked gradients",
            "build an adaptive attack: replace what cuts or flattens the gradient (BPDA), ascend another loss",
            _SMALL_STEPS,
        ),
        "ensemble": Check(
            "an ensemble breaks all that its members break: it lost images on the way, and its number is too high",
            "evaluate again; if that does not help, report it: the fault is the ensemble's",
        ),
        "stage": Check(
            "the file contradicts itself: a stage broke images that still stand, and no later stage saw them",
            "evaluate again with this version, which lets later stages see them",
        ),
        "single-step": Check(
            "one step should not find what twenty cannot: a sign of masked gradients or of a badly tuned attack",
            "tune step size and steps, add restarts, ascend a margin",
        ),
        "stronger-attack": Check(
            "an attack that should be the stronger one breaks less: it did not work, or the model changed on the way",
            "find out which of the two is wrong before either is quoted; look for state in the model",
        ),
        "monotone": Check(
            "an attack with a larger radius may do all that one with a smaller radius does",
            "more steps or restarts at the larger radius; if that does not help, gradients are masked",
        ),
        "loss-gap": Check(
            "a margin loss finds much that cross-entropy misses: logits are scaled so that cross-entropy saturates",
            "do not quote PGD or FGSM on cross-entropy for this model; AutoAttack and C&W are the numbers to read",
        ),
        "cascade-gap": Check(
            "a cascade of attacks breaks much that the others miss together: the loss is flat or rough for them",
            "read the cascade's number; suites without it are too high for this model",
        ),
        "gradients-cross-entropy": Check(
            "where the gradient of cross-entropy vanishes, FGSM and PGD do nothing and the image seems robust",
            "read the numbers of attacks on a margin and of AutoAttack instead, or divide the logits by their scale",
        ),
        "more-steps": Check(
            "the search had not converged with fewer steps; more of them may break still more",
            "read the longer attack's number, and add steps until it stands still",
        ),
        "more-draws": Check(
            "the search looked at too few draws: with twice as many it breaks more, and would break still more",
            "raise `draws.search` in a suite of your own until this is silent; until then the numbers are too high",
        ),
        "adaptive-attack": Check(
            "whoever attacks knows the defense; a loss made for it can find what cross-entropy does not",
            "add one: suite table8 for the defenses here, --adaptive FILE.py:FUNCTION for your own",
        ),
        "threat-model": Check(
            "a robustness number means nothing without its norm, exact radius and data",
            "evaluate again with `bench eval`, which records them",
        ),
        "every-attack": Check(
            "an attack of the suite has no outcomes, so the worst case over attacks is not that of the suite",
            "evaluate again; a missing cell must never be read as robust",
        ),
        "budget": Check(
            "an image outside the threat model proves nothing",
            "evaluate again: the harness projects every image, so the file was not written by it as it is",
        ),
        "catastrophic-overfitting": Check(
            "the training has learned to stand one step and no more: the robustness that it had is gone",
            "quote no attack of one step; train with a random start, more --attack-steps or a smaller radius; "
            "--holdout N keeps an epoch before",
        ),
        "robust-overfitting": Check(
            "the training went on past its best epoch: more training images stand, and fewer test images",
            "nothing is wrong with the number; train with --holdout N and evaluate --checkpoint best, or average "
            "weights (--average ema or swa)",
        ),
        "rounding": Check(
            "adversarial images lose their effect when kept as integers: they rely on differences below one level",
            "nothing is wrong with the row; an attacker who must write files would find fewer",
        ),
    }
)
"""By name, in the order in which faults are to be repaired: one upstream raises checks downstream (docs/trust.md)."""
