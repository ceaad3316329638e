"""The harness: from dataset to leaderboard. It names no defense and no attack; the registry finds them."""

__version__ = "0.1.0"
