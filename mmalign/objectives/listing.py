"""The table of objectives for people: on the terminal, and as docs/objectives.md."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmalign.objectives.table import Entry

# torch is imported by the functions, so that a command line can read their signatures without it.


def objectives(name: str | None = None, *, logic: bool = False, draw: Path | None = None) -> None:
    """List all objectives, or explain one with its options and defaults.

    Raises SpecError when there is no objective of that name.

    Args:
        name: The objective to explain.
        logic: Show what losses mean as logic, and how they are ordered, instead.
        draw: With --logic, also draw their order to this SVG, PNG or PDF file (needs matplotlib);
            otherwise, draw every loss and its slope over the margin into this folder.

    Examples:
        mmalign objectives
        mmalign objectives simpo
        mmalign objectives --logic --draw lattice.svg
        mmalign objectives --draw pictures
    """
    from rich.console import Console

    from mmalign.objectives.options import SpecError, nearest
    from mmalign.objectives.table import TABLE

    console = Console()
    if logic:
        from mmalign.objectives.logic.listing import logic_listing

        console.print(logic_listing())
        if draw is not None:
            from mmalign.objectives.logic.draw import draw as draw_lattice

            draw_lattice(draw)
            console.print(f"Drawn: {draw}")
    elif draw is not None:
        from mmalign.objectives.plots import draw as draw_losses

        draw_losses(draw)
        console.print(f"Drawn: {', '.join(str(path) for path in sorted(draw.glob('*.svg')))}")
    elif name is None:
        console.print(_table(TABLE))
    elif name in TABLE:
        console.print(explain(name), markup=False, highlight=False)
    else:
        known = ", ".join(TABLE)
        raise SpecError(f"no objective {name!r}{nearest(name, TABLE)}; there are: {known}")


def explain(name: str) -> str:
    """What an objective is, its formula, paper, options and defaults, and what it needs."""
    from mmalign.objectives.combine import parameters
    from mmalign.objectives.options import describe
    from mmalign.objectives.table import TABLE

    entry = TABLE[name]
    lines = [signature(name), "", inspect.getdoc(entry.function) or "", ""]
    lines += [f"formula    {entry.formula}", f"paper      {paper(entry)}"]
    lines += [f"kind       {kind(entry)}", f"needs      {needs(name) or 'nothing'}"]
    for option, parameter in parameters(entry).items():
        lines.append(f"  {option}: {describe(parameter.annotation)}")
    return "\n".join(lines)


def signature(name: str) -> str:
    """`simpo(beta=2.0, gamma=0.5, ...)`, with `option=?` where there is no default."""
    from mmalign.objectives.combine import parameters
    from mmalign.objectives.table import TABLE

    entry = TABLE[name]
    options = [] if not entry.around else ["..."]
    for option, parameter in parameters(entry).items():
        required = parameter.default is parameter.empty
        options.append(f"{option}={'?' if required else repr(parameter.default)}")
    return f"{name}({', '.join(options)})"


def needs(name: str) -> str:
    """What an objective with its default options needs: "reference, tokens" ..."""
    from mmalign.objectives.combine import objective, parameters
    from mmalign.objectives.scores import Needs
    from mmalign.objectives.table import TABLE

    entry = TABLE[name]
    given = {k: p.default for k, p in parameters(entry).items() if p.default is not p.empty}
    if entry.kind == "preset" and len(given) == len(parameters(entry)):
        found = objective(name).needs
    elif isinstance(entry.needs, Needs):
        found = entry.needs
    elif len(given) == len(parameters(entry)):
        found = entry.needs(**given)
    else:
        return "depends on its options"
    words = ["reference"] * found.reference + ["tokens"] * found.tokens
    words += ["divergence"] * found.divergence
    words += [f"view {view}" for view in sorted(found.views)]
    words += [f"token figure {stat}" for stat in sorted(found.stats)]
    return ", ".join(words + [f"aux {number}" for number in sorted(found.aux)])


def kind(entry: Entry) -> str:
    return f"{entry.kind} (around {entry.around})" if entry.around else entry.kind


def paper(entry: Entry) -> str:
    return f"arXiv:{entry.paper}" if entry.paper[:1].isdigit() else entry.paper


def markdown() -> str:
    """The text of docs/objectives.md."""
    from mmalign.objectives import trl
    from mmalign.objectives.plots import PICTURES
    from mmalign.objectives.table import TABLE

    lines = [HEAD]
    for name, entry in TABLE.items():
        cells = [f"`{signature(name)}`", entry.formula.replace("|", "\\|"), kind(entry)]
        lines.append("| " + " | ".join([*cells, needs(name), paper(entry)]) + " |")
    lines += ["", SHAPES, ""]
    lines += [
        f"![{title}: loss and slope](images/{file}.svg)" for file, (title, _) in PICTURES.items()
    ]
    lines += ["", LOGIC, "", trl.section(), "", ABSENT, "", "## One by one"]
    for name, entry in TABLE.items():
        lines += ["", f"### {name}", "", "```", f"{signature(name)}", ""]
        lines += [inspect.getdoc(entry.function) or "", "```"]
    return "\n".join(lines) + "\n"


HEAD = """# Objectives

This page is written by `python -m mmalign.objectives.listing docs/objectives.md`; do not edit it.

An objective is named by a spec: `dpo(beta=0.1)`, `robust(dpo(beta=0.1), flip_rate=0.2)`,
`dpo(beta=0.1) + 0.2*nll()`. Specs are read, never evaluated; unknown names and options are errors.

Notation: s and r are the log-probabilities of a response under policy and reference, summed over
its tokens; D = s - r; h = D_w - D_l (chosen w, rejected l); sp(z) = log(1 + e^z); z = beta D in
lists; l the wrapped loss and l' the same with the pair flipped; c = +1 or -1 a thumb.

| spec with defaults | formula | kind | needs | paper |
|---|---|---|---|---|"""


SHAPES = """## Loss and slope over the margin

Written by `python -m mmalign.objectives.plots docs/images`. A margin of h nats: the best candidate
gained h/2 on the reference, the worst lost h/2, everything else stays where the reference is;
responses have 20 tokens."""


LOGIC = """## What losses say as logic

![Sixteen losses by strictness](images/loss-lattice.svg)

`mmalign objectives --logic --draw docs/images/loss-lattice.svg` prints and draws it: for sixteen
reference-free losses, what each one says about which response the policy deems valid, and which
loss is stricter than which. `logic(loss="cCPO")` trains one of them, `logic(formula="M_l implies
M_w", given="M_w or M_l")` one of your own. arXiv:2412.17696."""


ABSENT = """## What is not here

Diffusion-RPO (arXiv:2406.06382) weighs pairs of different prompts by how alike prompts and pictures
are, in a way of which no formula is published. InPO (arXiv:2503.18454) is DPO on pictures that were
noised by inversion, in which its paper and its code differ."""


def _table(entries: dict[str, Entry]) -> object:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("objective", no_wrap=True)
    for heading in ("formula", "reference", "kind"):
        table.add_column(heading, overflow="fold")
    table.add_column("paper", no_wrap=True)
    for name, entry in entries.items():
        reference = "yes" if "reference" in needs(name) else ""
        table.add_row(name, escape(entry.formula), reference, kind(entry), paper(entry))
    return table


if __name__ == "__main__":
    import sys

    Path(sys.argv[1]).write_text(markdown(), encoding="utf-8")
