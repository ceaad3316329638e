"""What the distances of adversarial images say: accuracy at every radius, and how near an attack comes to the best.

A distance that an attack found is an upper bound of the distance to the nearest adversarial image. Accuracy at a radius
that is counted from such distances is an upper bound of robust accuracy there: a better search may lower it, none may
raise it.
"""

from collections.abc import Collection

import numpy as np
from jaxtyping import Float

from bench.errors import BenchError
from bench.radii import exact
from bench.results.file import EvaluationResult
from bench.results.metrics import Outcomes, correct

Distances = Float[np.ndarray, " sample"]


def nearest_found(result: EvaluationResult, labels: Collection[str]) -> Distances:
    """Per sample: the smallest distance at which one of these attacks broke it, in their norm.

    0 for a sample that is wrong clean, infinite for one that stands under all of them.

    Raises:
        BenchError: no attack has such a label, or they are of several norms.
    """
    nearest = np.where(correct(result), np.inf, 0.0)
    for label in labels:
        broken = correct(result) & ~correct(result, label)
        record = result.attacks[label]
        # An image inside the threat model may lie beyond its radius by rounding.
        distance = np.minimum(record.distance, stored_radius(record.epsilon))
        nearest = np.where(broken, np.minimum(nearest, distance), nearest)
    norms = {result.attacks[label].norm for label in labels}
    if len(norms) > 1:
        raise BenchError(f"distances in {' and '.join(sorted(norms))} do not compare. Choose attacks of one norm.")
    return nearest


def right_at(result: EvaluationResult, labels: Collection[str], radius: float) -> Outcomes:
    """Per sample: right clean, and not broken by any of these attacks at this distance or a smaller one.

    `radius` is one of `stored_radius`.

    Raises:
        BenchError: as `nearest_found`.
    """
    return np.asarray(nearest_found(result, labels) > radius)


def stored_radius(text: str) -> float:
    """A radius such as `8/255`, rounded as stored distances are: one at exactly that radius equals it.

    Raises:
        BenchError: the text is no number.
    """
    try:
        return float(np.float32(float(exact(text))))
    except (ValueError, ZeroDivisionError):
        raise BenchError(f"radius {text[:40]!r} is not a number. Write 4/255 or 0.15.") from None


def attacks_of_norm(result: EvaluationResult, norm: str) -> list[str]:
    """Labels of the attacks in a norm."""
    return [label for label, record in result.attacks.items() if record.norm == norm]


def optimality(result: EvaluationResult, label: str) -> float:
    """How near an attack comes to the best known distances, in [0, 1]: 1 for an attack that finds them all.

    Best known is, per sample, the smallest distance that any attack of the result found in the same norm. With areas
    below the curves of accuracy over the radius, up to the largest best known distance r:

        1 - (area of the attack - best area) / (clean accuracy * r - best area)

    This is the local optimality of AttackBench (Cinà et al. 2025, https://arxiv.org/abs/2404.19460), with the areas of
    the step curves themselves; a sample that no attack broke adds the same to all three.

    Raises:
        BenchError: no attack has this label, or none of its norm breaks anything.
    """
    found = nearest_found(result, [label])
    best = nearest_found(result, attacks_of_norm(result, result.attacks[label].norm))
    broken = best[np.isfinite(best) & (best > 0)]
    if not broken.size:
        raise BenchError(f"no attack in the norm of {label!r} breaks an image: there is no best known distance.")
    limit = broken.max()
    # The area below a step curve up to a limit is the mean of the distances, cut off there.
    own, least = (float(np.minimum(distances, limit).mean()) for distances in (found, best))
    largest = float(limit * correct(result).mean())
    return 1.0 if own == least else 1 - (own - least) / (largest - least)
