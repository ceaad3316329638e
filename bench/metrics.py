"""Former name of `bench.results.metrics`, for published model cards; it goes with version 0.3."""

from bench.results.metrics import *  # noqa: F403
