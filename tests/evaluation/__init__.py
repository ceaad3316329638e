"""Tests of `bench/evaluation/`."""
