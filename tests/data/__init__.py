"""Tests of `bench/data/`."""
