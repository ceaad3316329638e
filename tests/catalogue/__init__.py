"""Tests of `bench/catalogue/`."""
