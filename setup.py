"""The description for a package index, where relative links lead nowhere; all else is in pyproject.toml."""

import re
from pathlib import Path

ELSEWHERE = (
    "The pages that this one names are in the project's repository, where `make docs` builds a site of them. The "
    "installed command needs none: `bench explain`, `bench list NAME` and `--help`."
)


def description() -> str:
    """README.md with the words of relative links in place of the links, and without pictures of this repository."""
    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    text = re.sub(r"^!\[[^\]]*\]\((?!https?:)[^)]*\)\n\n?", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]*)\]\((?!https?:)[^)\s]*\)", r"\1", text)
    return re.sub(r"<!--.*?-->\n*", "", text).rstrip() + f"\n\n{ELSEWHERE}\n"


if __name__ == "__main__":
    from setuptools import setup

    setup(long_description=description(), long_description_content_type="text/markdown")
