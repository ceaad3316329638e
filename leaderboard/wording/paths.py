"""Paths in a result file, without the folders of the machine that made it."""

import re

from bench.text import one_line

# From the start of a word, or of the part of it after = or : (npz:PATH, --model=FILE.py:FACTORY).
_FOLDERS = re.compile(r"(?:^|(?<=[=:,]))(?:~[^/\\]*|\.\.|[A-Za-z]:)?[/\\](?:[^/\\]*[/\\])*")


def without_folders(word: object) -> str:
    """`word` with every absolute path in it shortened to its last part: `npz:/home/me/x.npz` is `npz:x.npz`.

    Folders below the one that the command ran in, and fractions such as 8/255, stay.
    """
    return _FOLDERS.sub("", one_line(word))
