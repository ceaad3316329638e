"""Tests of `attacks/`."""
