"""The training of a model, as a result records it."""

from collections.abc import Mapping
from typing import Any

from bench.catalogue.protocol import LATER


def recorded_protocol(run: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a training, with those that its record leaves out; empty where no training is recorded."""
    recorded = run.get("protocol")
    return {**LATER, **recorded} if recorded else {}
