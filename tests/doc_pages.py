"""The pages of the documentation, and the fenced blocks in them."""

import re
from pathlib import Path
from typing import NamedTuple

#: The top of the repository.
ROOT = Path(__file__).parent.parent


class Block(NamedTuple):
    """A fenced block: its language and its text."""

    language: str
    text: str


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page, in their order."""
    return [
        Block(*found)
        for found in re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    ]


def rows_after(page: Path, heading: str) -> list[list[str]]:
    """Return the cells of the table in the section of this heading, without its head."""
    section = page.read_text("utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip().strip("`") for cell in row] for row in rows[1:]]
