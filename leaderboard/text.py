"""Text of a result file, made fit to show: whatever a name holds, it stays on its line."""

import re

# From the start of a word, or of the part of it after = or : (npz:PATH, --model=FILE.py:FACTORY).
_FOLDERS = re.compile(r"(?:^|(?<=[=:,]))(?:~[^/\\]*|\.\.|[A-Za-z]:)?[/\\](?:[^/\\]*[/\\])*")


def one_line(text: object) -> str:
    """Printable text on one line; a control character or a line break becomes a space."""
    return " ".join("".join(mark if mark.isprintable() else " " for mark in str(text)).split())


def without_folders(word: object) -> str:
    """`word` with every absolute path in it shortened to its last part: `npz:/home/me/x.npz` is `npz:x.npz`.

    Folders below the one that the command ran in, and fractions such as 8/255, stay.
    """
    return _FOLDERS.sub("", one_line(word))
