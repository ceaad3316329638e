"""The state of a defense besides the model: `Defense.state`, saved with every epoch and put back in a resumed run."""

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.interfaces import Defense, Stateful
from bench.system.files import content_digest

_ANOTHER = "train again in another folder (--out)."


class KeptState:
    """The items that `Defense.state` returned.

    Raises:
        BenchError: it returned what has no state, or a state that no file can hold.
    """

    def __init__(self, defense: Defense, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.owner = type(defense).__name__
        found = defense.state(model, optimizer)
        if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
            raise BenchError(f"state() of {self.owner} returned no dictionary: return what is kept, by name.")
        self.items: dict[str, Stateful | Tensor] = dict(found)
        for name, item in self.items.items():
            if not isinstance(item, Tensor | Stateful):
                raise BenchError(
                    f"state() of {self.owner} returned a {type(item).__name__} for {name!r}: it must be a tensor, or "
                    "have state_dict() and load_state_dict(), as optimisers, schedules and modules do."
                )
        self.require_savable()

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers among what is kept."""
        return {name: item for name, item in self.items.items() if isinstance(item, torch.optim.Optimizer)}

    def saved(self) -> dict[str, Any]:
        """Tensors and plain values by name, as they are now."""
        return {name: one.detach() if isinstance(one, Tensor) else one.state_dict() for name, one in self.items.items()}

    def digests(self) -> dict[str, str]:
        """sha256 of what is saved, by name."""
        return {name: content_digest(value) for name, value in self.saved().items()}

    def require_savable(self) -> None:
        """Refuse a state that would not come back from a file of which nothing is executed."""
        for name, value in self.saved().items():
            content = io.BytesIO()
            try:
                torch.save(value, content)
                content.seek(0)
                found = torch.load(content, map_location="cpu", weights_only=True)
                same = content_digest(found) == content_digest(value)
            except Exception:  # pickle, json and state_dicts themselves raise many kinds
                same = False
            if not same:
                raise BenchError(
                    f"{name!r} in the state of {self.owner} cannot be saved: its state_dict() must hold tensors, "
                    "numbers, texts, and lists and dictionaries of them, and nothing else."
                )

    @torch.no_grad()
    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over what an earlier run saved; other names or shapes are refused."""
        if saved.keys() != self.items.keys():
            theirs, ours = (", ".join(names) or "nothing" for names in (saved, self.items))
            raise BenchError(
                f"the training state keeps {theirs} for {self.owner}, whose state() returns {ours}: {_ANOTHER}"
            )
        for name, item in self.items.items():
            try:
                if isinstance(item, Tensor):
                    if item.shape != saved[name].shape:
                        raise ValueError(f"{tuple(saved[name].shape)} is not {tuple(item.shape)}")
                    item.copy_(saved[name])
                else:
                    item.load_state_dict(saved[name])
            except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
                reason = " ".join(str(error).split())[:120]
                raise BenchError(
                    f"{name!r} of the training state does not fit state() of {self.owner} ({reason}): {_ANOTHER}"
                ) from error
