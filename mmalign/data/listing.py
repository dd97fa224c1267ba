"""The table of formats that docs/datasets.md shows.

`python -m mmalign.data.listing docs/datasets.md` writes it there, between its two marks.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmalign.data.formats import FORMATS, Format
from mmalign.files import whole_file

BEGIN, END = "<!-- formats -->\n", "<!-- /formats -->\n"


def formats_table() -> str:
    """The formats as a Markdown table: name, what it is, the columns that tell it."""
    rows = [f"| `{name}` | {known.about} | {_columns(known)} |" for name, known in FORMATS.items()]
    head = ["| format | what it is | told by the columns |", "|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"


def with_table(page: str) -> str:
    """The page with today's table between its marks. Raises ValueError for a page without them."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{formats_table()}{END}{after}"


def _columns(known: Format) -> str:
    sets = "; or ".join(", ".join(f"`{column}`" for column in needs) for needs in known.needs)
    return f"only with `--format`; {sets}" if known.by_name else sets


if __name__ == "__main__":
    page = Path(sys.argv[1])
    text = with_table(page.read_text(encoding="utf-8"))
    with whole_file(page) as partial:
        partial.write_text(text, encoding="utf-8")
