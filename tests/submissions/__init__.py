"""Tests of `bench/submissions/`."""
