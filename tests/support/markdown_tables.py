"""Markdown tables, read back."""


def cells(text: str) -> list[list[str]]:
    """The cells of a text's only table, row by row from the headers on."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [lines[0], *lines[2:]]


def column(text: str, title: str) -> list[str]:
    """The cells below a header."""
    headers, *rows = cells(text)
    return [row[headers.index(title)] for row in rows]
