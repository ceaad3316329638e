"""Former name of `bench.models.checkpoints`, for published model cards; it goes with version 0.3."""

from bench.models.checkpoints import *  # noqa: F403
