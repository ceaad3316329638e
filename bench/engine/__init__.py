"""A model under a suite: every sample's outcome."""
