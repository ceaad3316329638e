"""Tests of `bench/results/`."""
