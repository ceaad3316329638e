"""An average of a model's weights over its training, which is kept as a checkpoint of its own, `average/`.

Weights are averaged by `torch.optim.swa_utils`: exponentially over steps (`ema`), or evenly over the ends of epochs
(`swa`, Izmailov et al. 2018, https://arxiv.org/abs/1803.05407). Buffers are the model's, but for the running statistics
of BatchNorm, which are those of no average: after every epoch they are measured anew in one pass over the training
images, clean and augmented, in train mode, as `update_bn` does there.

The average takes no part in the training: perturbed images are crafted against the weights that are trained.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from bench.catalogue.protocol import TrainingProtocol
from bench.interfaces import Images


class AveragedWeights:
    """The average that a protocol asks for: none, until `average_from` the weights themselves, then what its kind says.

    `done` is the share of the training that is done.
    """

    def __init__(self, model: nn.Module, protocol: TrainingProtocol) -> None:
        self.model, self.kind, self.begins = model, protocol.average, protocol.average_from
        self.average: AveragedModel | None = None
        if self.kind != "none":
            # Without a function of its own, `AveragedModel` averages evenly.
            moving = get_ema_multi_avg_fn(protocol.average_decay) if self.kind == "ema" else None  # type: ignore[no-untyped-call]
            self.average = AveragedModel(model, multi_avg_fn=moving)

    def after_step(self, done: float) -> None:
        """Take in the weights, where every step counts."""
        if self.kind == "ema":
            self._take_in(done)

    def after_epoch(self, done: float, batches: Iterable[Images]) -> None:
        """Take in the weights, where epochs count; measure the statistics of BatchNorm."""
        if self.kind == "swa":
            self._take_in(done)
        if self.average is not None:
            update_bn(batches, self.average.module)

    def _take_in(self, done: float) -> None:
        assert self.average is not None
        self.average.update_parameters(self.model)
        if done <= self.begins:
            self.average.n_averaged.zero_()  # the next weights replace these

    def state(self) -> dict[str, Any]:
        """The averaged `weights` and their `count`, of which a resumed run goes on; empty without an average."""
        if self.average is None:
            return {}
        return {"weights": self.average.module.state_dict(), "count": int(self.average.n_averaged)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        if self.average is not None:
            self.average.module.load_state_dict(state["weights"])
            self.average.n_averaged.fill_(state["count"])


def averaged_weights(state: Mapping[str, Any]) -> Mapping[str, Tensor] | None:
    """The averaged weights in a run's training state; None: it has no average."""
    weights: Mapping[str, Tensor] | None = state.get("average", {}).get("weights")
    return weights
