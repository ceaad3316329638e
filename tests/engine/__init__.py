"""Tests of `bench/engine/`."""
