"""The harness: from dataset to leaderboard. It names no defense and no attack; the registry finds them."""

from bench import robustbench_package

__version__ = "0.1.0"

robustbench_package.install()
