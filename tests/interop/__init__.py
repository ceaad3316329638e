"""Tests of `bench/interop/`."""
