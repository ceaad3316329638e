"""Tests of `bench/interfaces/`."""
