"""Docstrings of plug-ins in parts, and as Markdown: the method, and its deviations from the paper."""

import re

# Text in backticks and addresses stay as they are.
_VERBATIM = re.compile(r"(`[^`]*`|https?://[^\s)>]*[^\s)>,.;:])")
_SPECIAL = re.compile(r"[\\*<>|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def prose(text: str) -> str:
    """Plain text whose characters mean nothing to Markdown; `code` and addresses stay."""
    pieces = _VERBATIM.split(" ".join(text.split()))
    return "".join(piece if place % 2 else _SPECIAL.sub(r"\\\g<0>", piece) for place, piece in enumerate(pieces))


def method_of(docstring: str) -> str:
    """All that a docstring says but its deviations, as Markdown."""
    return "\n\n".join(map(_paragraph, parts(docstring)[0]))


def deviations_of(docstring: str) -> str:
    """The deviations that a docstring names, as Markdown; empty: none."""
    text = "\n\n".join(map(_paragraph, parts(docstring)[1]))
    return re.sub(r"^Deviations?: (\w)", lambda found: found[1].upper(), text)


def parts(docstring: str) -> tuple[list[str], list[str]]:
    """Paragraphs of the method, and those of its deviations: one that starts with that word, and a list after it."""
    method: list[str] = []
    deviations: list[str] = []
    for paragraph in re.split(r"\n\s*\n", docstring.strip("\n")):
        listed = bool(deviations) and paragraph.startswith("* ")
        (deviations if paragraph.startswith("Deviation") or listed else method).append(paragraph)
    return method, deviations


def _paragraph(text: str) -> str:
    """Equations, which are indented, as a block of text; lists and sentences as they are."""
    if text.startswith("    "):
        return "\n".join(["```text", *(line.removeprefix("    ").rstrip() for line in text.splitlines()), "```"])
    items = re.split(r"^\* ", text, flags=re.MULTILINE)
    if text.startswith("* "):
        return "\n".join(f"- {prose(item)}" for item in items[1:])
    head, *equations = re.split(r"\n(?=    )", text, maxsplit=1)
    return "\n\n".join([prose(head), *map(_paragraph, equations)])
