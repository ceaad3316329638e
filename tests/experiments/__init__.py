"""Tests of `bench/experiments/`."""
