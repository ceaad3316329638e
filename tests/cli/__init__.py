"""Tests of `bench/cli/`."""
