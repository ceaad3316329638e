"""Tests of `leaderboard/`."""
