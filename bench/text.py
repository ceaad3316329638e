"""Text of files and of persons, made fit to show: on a line, on a terminal, in Markdown, in a spreadsheet's cell."""

import re
from datetime import datetime, timezone

# An underscore inside a word is plain text in GitHub Markdown; one at its edge may set emphasis.
_SPECIAL = re.compile(r"[<>`|*#\[\]\\~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|^[-+=]|^\d(?=\d*[.)](?: |$))|&(?=#?\w+;)")
# Where GitHub makes a link of plain text, also of one that was written as character references: @name, a@b.c,
# https://b.c, www.b.c. A comment, which is not shown, cuts them.
_LINKING = re.compile(r"(?<!\w)@(?=\w)|@(?=[\w-]*\.\w)|:(?=//)|\bwww(?=\.)", re.IGNORECASE)
_CUT = "<!-- -->"
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
"""Marks that start a formula in a spreadsheet: https://owasp.org/www-community/attacks/CSV_Injection."""


def one_line(text: object) -> str:
    """Printable text on one line; a control character or a line break becomes a space."""
    return " ".join("".join(mark if mark.isprintable() else " " for mark in str(text)).split())


def printable(text: object) -> str:
    """Text for a terminal: lines and tabulators as they are; any other control character becomes a space."""
    return "".join(mark if mark in "\n\t" or mark.isprintable() else " " for mark in str(text))


def escape(text: object) -> str:
    """`text` on one line of Markdown: nothing in it acts as Markdown or HTML, or becomes a link or a mention."""
    characters = _SPECIAL.sub(lambda match: f"&#{ord(match[0])};", one_line(text))
    return _LINKING.sub(lambda match: match[0] + _CUT, characters)


def uncut(text: str) -> str:
    """A text of `escape` without the comments that it put in."""
    return text.replace(_CUT, "")


def setting_text(value: object) -> str:
    """The value of a setting as one word, as an option takes it: the items of a list with commas between them."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def cell(value: object) -> object:
    """A value of a spreadsheet; text that would be a formula begins with an apostrophe."""
    if not isinstance(value, str):
        return value
    line = one_line(value)
    return f"'{line}" if line.startswith(_FORMULA) else line


def time_text() -> str:
    """The time now, as ISO 8601 in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def amount(size: int) -> str:
    """Bytes for a person: 512 B, 1.5 MB, 240 GB."""
    power = next((power for power in range(4) if size < 1000 ** (power + 1)), 4)
    value = size / 1000**power
    return f"{value:,.{1 if power and value < 10 else 0}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
