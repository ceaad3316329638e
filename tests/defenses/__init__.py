"""Tests of `defenses/`."""
