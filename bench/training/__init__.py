"""From a request to a checkpoint."""
