"""Commands and code of the pages under docs/, for the tests that run them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(pages: Iterable[str]) -> list[str]:
    """Every command of these pages, in one line each."""
    shell = "\n".join(block for page in pages for block in blocks(page, "sh"))
    return [line for line in shell.replace("\\\n", " ").splitlines() if line.strip()]
