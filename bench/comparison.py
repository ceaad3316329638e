"""Former name of `bench.results.comparison`, for published model cards; it goes with version 0.3."""

from bench.results.comparison import *  # noqa: F403
