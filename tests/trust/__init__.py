"""Tests of `bench/trust/`."""
