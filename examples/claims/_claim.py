"""What every claim's script shares: figures with intervals over seeds, a verdict, and one record.

A script says what is claimed and measures it; `run` parses the command line, prints the figures and
the verdict, and writes DIR/NAME.json. `python examples/claims/_claim.py` makes README.md from the
records under results/.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmalign import environment
from mmalign.evaluation.intervals import Interval
from mmalign.files import whole_file

environment.prepare()  # before a script imports torch

HERE = Path(__file__).parent
RESULTS = HERE / "results"

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
"""97.5 % points of Student's t for 1, 2 ... 20 degrees of freedom; 1.96 + 2.5/n beyond."""


@dataclass(frozen=True)
class Claim:
    """name: of script and record. text: what is claimed. control: what the claim is measured
    against, so that the effect cannot be had without the method."""

    name: str
    text: str
    paper: str
    control: str


@dataclass(frozen=True)
class Figure:
    """One measured number: under which setting, of how many seeds (or held-out items), with its
    95 % interval."""

    setting: str
    metric: str
    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{_short(self.value)} [{_short(self.low)}, {_short(self.high)}]"


@dataclass
class Outcome:
    """What a script found. summary: the figures that decide, in one sentence. reason: why a claim
    does not hold here, or what limits the finding."""

    figures: list[Figure]
    holds: bool
    summary: str
    reason: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """The command line. quick: a tiny setting that shows that the script runs, and nothing else.
    out: folder for the record and whatever a script keeps."""

    quick: bool
    out: Path
    seeds: int


def run(
    claim: Claim, measure: Callable[[Options], Outcome], *, seeds: int = 5,
    tokens: Sequence[str] | None = None,
) -> Outcome:  # fmt: skip
    """Measure a claim as the command line says, print it and write its record.

    seeds: how many a script uses unless told otherwise. The exit code does not depend on the
    verdict: a claim that fails is a finding.
    """
    parser = argparse.ArgumentParser(description=f"{claim.text} ({claim.paper})")
    parser.add_argument("--out", type=Path, default=Path("runs/claims"), help="folder of records")
    parser.add_argument("--seeds", type=int, default=None, help=f"number of seeds ({seeds})")
    parser.add_argument("--quick", action="store_true", help="a tiny setting, to see it run")
    given = parser.parse_args(tokens)
    count = given.seeds or (2 if given.quick else seeds)
    options = Options(given.quick, given.out, count)
    print(f"Claim    {claim.text} ({claim.paper})\nControl  {claim.control}\n")
    began, used = time.perf_counter(), time.process_time()
    outcome = measure(options)
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    _print(outcome, seconds)
    record = {
        **asdict(claim),
        "holds": outcome.holds,
        "summary": outcome.summary,
        "reason": outcome.reason,
        "quick": options.quick,
        "seeds": options.seeds,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "figures": [_finite(asdict(figure)) for figure in outcome.figures],
        "details": outcome.details,
    }
    with whole_file(options.out / f"{claim.name}.json") as partial:
        partial.write_text(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return outcome


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean over seeds with Student's 95 % interval; for two methods give the differences per seed.

    One seed alone has no interval: its bounds are nan.
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, math.nan, math.nan)
    t = T_975[n - 2] if n - 1 <= len(T_975) else 1.96 + 2.5 / n
    half = t * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def figure(setting: str, metric: str, values: Sequence[float]) -> Figure:
    """The mean of one value per seed."""
    return Figure(setting, metric, *over_seeds(values), len(values))


def of_interval(setting: str, metric: str, interval: Interval, n: int) -> Figure:
    """A figure whose interval is over n held-out items."""
    return Figure(setting, metric, *interval, n)


def surely_above(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether `first` exceeds `second`, seed by seed, with 0 outside the interval of the
    differences."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return over_seeds(differences).low > 0


def _print(outcome: Outcome, seconds: float) -> None:
    width = max(len(f"{figure.setting}  {figure.metric}") for figure in outcome.figures)
    for each in outcome.figures:
        print(f"  {f'{each.setting}  {each.metric}':<{width}}  {each}  n={each.n}")
    verdict = "holds" if outcome.holds else "does not hold"
    print(f"\n{outcome.summary}\nVerdict  {verdict}. {outcome.reason}".rstrip())
    print(f"Time     {seconds:.0f} s")


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "?"


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no nan: what is not known is null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


# ---- the page


HEAD = """# Claims

What the papers behind mmalign's objectives claim, measured in miniature by one command each, beside
the control that the claim needs. A claim that fails here is listed as failed, with the reason;
miniatures show mechanisms, not benchmark scores. Intervals are 95 %, over seeds (Student's t)
unless a figure says otherwise. `--quick` runs a script in a setting that shows only that it works.

This page is made from the records in results/ by `python examples/claims/_claim.py`; run a script
with `--out examples/claims/results` to replace its record.

| claim | command | result | verdict | time |
|---|---|---|---|---|"""


def readme(folder: Path = RESULTS) -> str:
    """The text of README.md, from the records in a folder."""
    files = sorted(folder.glob("*.json"))
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    lines = [HEAD]
    for record in records:
        cells = [
            f"{record['text']} ({record['paper']})",
            f"`python examples/claims/{record['name']}.py`",
            record["summary"],
            "**holds**" if record["holds"] else "**does not hold**",
            _duration(record["seconds"]),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    for record in records:
        lines += ["", f"## {record['name']}", "", f"{record['text']} ({record['paper']})", ""]
        lines += [f"Control: {record['control']}", ""]
        lines += ["| setting | figure | value | 95 % interval | n |", "|---|---|---|---|---|"]
        for row in record["figures"]:
            low, high = (_short(math.nan if row[e] is None else row[e]) for e in ("low", "high"))
            value = _short(math.nan if row["value"] is None else row["value"])
            cells = [row["setting"], row["metric"], value, f"{low} to {high}", str(row["n"])]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        verdict = "Holds" if record["holds"] else "Does not hold"
        lines += ["", f"{verdict}. {record['reason']}".rstrip()]
    return "\n".join(lines) + "\n"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


if __name__ == "__main__":
    (HERE / "README.md").write_text(readme(), encoding="utf-8")
