"""Tests of `bench/system/`."""
