"""From a request to a checkpoint."""

SECONDS_BETWEEN_SAVES = 30.0
