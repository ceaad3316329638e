"""Fields of attacks and defenses."""

import dataclasses
from typing import Any


def hyperparameter(default: Any, about: str, source: str = "paper", choices: tuple[Any, ...] = ()) -> Any:
    """A dataclass field with its help text, where its default comes from, and its allowed values."""
    return dataclasses.field(default=default, metadata={"about": about, "source": source, "choices": choices})
