"""The losses and what they say in logic, for people on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

from mmalign.objectives.logic.losses import ALIASES, RATIOS, decompile, fraction, lattice


def logic_listing() -> RenderableType:
    """A table of the sixteen losses, from strict to loose, with their next looser neighbours."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    order = lattice()
    table = Table(box=box.SIMPLE_HEAD, title="Losses by strictness", title_justify="left")
    table.add_column("loss", no_wrap=True)
    for heading in ("ratio", "says", "given", "both", "looser neighbours", "named here"):
        table.add_column(heading, overflow="fold")
    for name in sorted(RATIOS, key=order.rank):
        found = decompile(name)
        looser = ", ".join(b for a, b in order.covers if a == name)
        here = ", ".join(alias for alias, loss in ALIASES.items() if loss.split("+")[0] == name)
        texts = [str(part) for part in (found.formula, found.given, found.both)]
        table.add_row(name, fraction(name), *texts, looser, here)
    return Group(table, NOTES)


NOTES = """Train one with logic(loss="cCPO", beta=1.0), or with a formula of your own:
logic(formula="M_l implies M_w", given="M_w or M_l", beta=1.0). M_w, M_l: the policy deems the
chosen, the rejected response valid; R_w, R_l: the reference does. w, l: their probabilities per
token. reference=True makes any of them relative to the reference (CPO becomes DPO). A loss is never
larger than a stricter one. arXiv:2412.17696
"""
