"""The state of a defense besides the model, saved with the model and put back in a resumed run.

It is what `Defense.state` returns, and the tables with a row for each image that `Defense.tables` asks for.
"""

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bench.engine.memory import shortage
from bench.errors import BenchError
from bench.interfaces import Defense, Stateful
from bench.system.files import content_digest

_ANOTHER = "train again in another folder (--out)."


def image_tables(
    defense: Defense, images: int, image_shape: tuple[int, int, int], device: torch.device
) -> dict[str, Tensor]:
    """The tables that `Defense.tables` asks for, of so many images.

    Raises:
        BenchError: it asks for what is no table, or for more than memory holds.
    """
    owner, asked = type(defense).__name__, defense.tables(image_shape)
    if not isinstance(asked, Mapping) or not all(isinstance(name, str) for name in asked):
        raise BenchError(f"tables() of {owner} returned no dictionary: return the shape of a row, by name.")
    for name, shape in asked.items():
        if not isinstance(shape, tuple) or not all(type(size) is int and size > 0 for size in shape):
            raise BenchError(
                f"tables() of {owner} returned {shape!r} for {name!r}: it must be the shape of a row, such as "
                "image_shape, (10,) or ()."
            )
    with shortage(f"The tables of {owner} have a row for each of {images} images: train on fewer, by --limit-train."):
        return {name: torch.zeros(images, *shape, device=device) for name, shape in asked.items()}


class KeptState:
    """The items that `Defense.state` returned, and its tables.

    Raises:
        BenchError: it returned what has no state, a state that no file can hold, or the name of a table.
    """

    def __init__(
        self, defense: Defense, model: nn.Module, optimizer: torch.optim.Optimizer, tables: Mapping[str, Tensor]
    ) -> None:
        self.owner = type(defense).__name__
        found = defense.state(model, optimizer)
        if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
            raise BenchError(f"state() of {self.owner} returned no dictionary: return what is kept, by name.")
        if twice := sorted(found.keys() & tables.keys()):
            raise BenchError(f"state() and tables() of {self.owner} both name {', '.join(twice)}: rename one of them.")
        self.tables = frozenset(tables)
        self.items: dict[str, Stateful | Tensor] = {**found, **tables}
        for name, item in found.items():
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
            if name in self.tables:  # which are large, and plain
                continue
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
                f"the training state keeps {theirs} for {self.owner}, whose state() and tables() name {ours}: "
                f"{_ANOTHER}"
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
                    f"{name!r} of the training state does not fit that of {self.owner} ({reason}): {_ANOTHER}"
                ) from error
