"""From a model and a suite to a result file."""
