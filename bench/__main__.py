"""`python -m bench`, for a checkout that is not installed; as a file, how this program starts itself once more."""

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    # `python -m` puts the current folder first on the path, where a `click.py` or `torch.py` would run as part of us.
    # Of a file it is the file's folder, whose names are no top-level ones.
    del sys.path[0]
if not __package__:
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import bench  # noqa: F401 - the program that this file belongs to, whatever is installed

    del sys.path[0]

if __name__ == "__main__":  # what multiprocessing starts needs no more than to find `bench`
    if sys.argv[1:2] == ["--job"]:
        del sys.argv[1]
        from bench.worker import main
    elif sys.argv[1:] == ["--jobs"]:
        from bench.worker import serve as main
    else:
        from bench.cli import main
    main()
