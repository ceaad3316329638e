"""Label smoothing: in every cross-entropy that is trained on, all classes share a part of the label's weight.

    CE(z, y)  ->  (1 - s) CE(z, y) + s * mean over all classes k of CE(z, k)

Defenses get their labels as class indices, and perturbed images are crafted with those, as in the recipes that smooth:
only what a defense then computes by torch's `cross_entropy` is smoothed, and no other term of its loss.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from bench.errors import BenchError
from bench.interfaces import Images, Step, TrainingContext


@contextmanager
def smoothed_labels(share: float, context: TrainingContext, defense: str) -> Iterator[TrainingContext]:
    """The context of a step whose cross-entropies are smoothed until exit, except while it crafts; 0: as it is.

    Raises:
        BenchError: there was none, at exit.
    """
    if not share:
        yield context
        return
    smoothing = _Smoothing(share)

    @contextmanager
    def view(model: nn.Module) -> Iterator[nn.Module]:
        with smoothing.paused(), context.view(model) as shown:
            yield shown

    def repeated(step: Step) -> Step:
        advance = context.repeated(step)

        def paused(images: Images) -> Images:
            with smoothing.paused():
                return advance(images)

        return paused

    with smoothing:
        yield replace(context, view=view, repeated=repeated)
    if not smoothing.count:
        raise BenchError(
            f"{defense} trains on no cross-entropy, so --label-smoothing {share} would change nothing: give 0."
        )


class _Smoothing(TorchFunctionMode):
    """Adds `label_smoothing` to every call of `cross_entropy` that has none, and counts them."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.count, self.rests = share, 0, False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Without smoothing until exit."""
        before, self.rests = self.rests, True
        try:
            yield
        finally:
            self.rests = before

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(options or {})
        if function is functional.cross_entropy and not self.rests and not given.get("label_smoothing"):
            given["label_smoothing"] = self.share
            self.count += 1
        return function(*arguments, **given)
