"""`python -m bench`, for a checkout that is not installed."""

import sys

if not getattr(sys.flags, "safe_path", False):
    # `python -m` puts the current folder first on the path: a `click.py` or `torch.py` there would run as part of us.
    del sys.path[0]

from bench.cli import main

main()
