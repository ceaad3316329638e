"""APGD on two losses: the gradient part of AutoAttack (Croce & Hein 2020, https://arxiv.org/abs/2003.01690).

APGD on cross-entropy, then targeted APGD on DLR on the images still standing, with AutoAttack's settings: under l1 five
restarts and five targets (Croce & Hein 2021, https://arxiv.org/abs/2103.01208). Step sizes adapt to the loss, so that
it is as strong under l1 and l2 as under linf, where PGD with a fixed step is not.
"""

from dataclasses import dataclass
from typing import ClassVar

from bench.attacks import autoattack
from bench.errors import BenchError
from bench.interfaces import Attack, Images, Problem


@dataclass(frozen=True)
class APGD(Attack):
    """AutoAttack without FAB and Square, which find next to nothing where gradients are sound, and cost the most."""

    paper: ClassVar[str] = "Croce & Hein, ICML 2020, https://arxiv.org/abs/2003.01690"

    def members(self, norm: str) -> tuple[Attack, ...]:
        return autoattack.standard(norm)[:2]

    def perturb(self, problem: Problem) -> Images:
        """Perturbed images where an attack succeeded, clean images elsewhere.

        Notes `stage`: the number of the attack that broke a sample (1 or 2), 0 where none did.

        Raises:
            BenchError: the model has fewer than 4 classes, or an objective is given.
        """
        if problem.objective is not None:
            raise BenchError("apgd brings its own losses and takes no objective. Use pgd for an adaptive attack.")
        if not len(problem.images) or problem.threat.radius == 0:
            return problem.images
        autoattack.count_classes(problem, "apgd")
        return autoattack.cascade(problem, self.members(problem.threat.norm))
