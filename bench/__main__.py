"""`python -m bench`, for a checkout that is not installed."""

from bench.cli import main

main()
