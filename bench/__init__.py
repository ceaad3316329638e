"""The harness: from dataset to leaderboard. It names no defense and no attack; the registry finds them."""

from bench import autoattack_package

__version__ = "0.1.0"

autoattack_package.install()
