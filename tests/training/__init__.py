"""Tests of `bench/training/`."""
