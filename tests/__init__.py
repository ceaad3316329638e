"""Tests. This file also keeps a third-party top-level package called `tests` from shadowing ours."""
