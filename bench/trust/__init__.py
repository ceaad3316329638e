"""Reasons to believe a number, or not to."""
