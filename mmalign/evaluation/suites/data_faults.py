"""`mmalign evaluate data-faults`: ties, repeats, contradictions and length bias of preferences, and
blank images."""

from __future__ import annotations

import time
from pathlib import Path

from mmalign.evaluation.diagnosis import diagnose
from mmalign.evaluation.diagnostics.data import blank_images, rates
from mmalign.evaluation.intervals import Interval, mean
from mmalign.evaluation.suite import Results, save_results
from mmalign.records import text_of
from mmalign.report.diagnosis import diagnosis
from mmalign.report.histograms import histograms
from mmalign.report.page import section
from mmalign.settings import save_settings


def data_faults(
    *,
    data: str,
    split: str | None = None,
    columns: list[str] | None = None,
    limit: int | None = None,
    out: Path = Path("runs/data-faults"),
) -> dict[str, dict[str, Interval]]:
    """Faults of a dataset that training cannot mend, in numbers and in words.

    Counts ties, identical responses, repeated and contradictory pairs, pairs whose images have one
    colour only, and how well nothing but the lengths of two responses would predict which one was
    preferred.

    Data:
        data: Folder, file or hub id of a dataset of preferences.
        split: Split of a hub dataset.
        columns: Columns that go by other names, as in chosen=better rejected=worse.
        limit: Read so many records only.

    Output:
        out: Folder for metrics.json and report.html.

    Examples:
        mmalign evaluate data-faults --data HuggingFaceH4/ultrafeedback_binarized --limit 20000
    """
    from itertools import islice

    from mmalign.data.opening import open_dataset, parse_columns
    from mmalign.errors import UserError
    from mmalign.records import Preference

    save_settings(out / "run.yaml", "evaluate data-faults", data_faults, locals())
    began = time.perf_counter()
    stream = open_dataset(data, split=split, columns=parse_columns(columns), streaming=True)
    read = [record for _, record in islice(stream.checked(), limit)]
    found = [record for record in read if isinstance(record, Preference)]
    counts = rates(found)
    if not counts.pairs:
        raise UserError(
            f"{data} holds no preferences of two or more responses",
            hint="`mmalign inspect` shows what is in it",
        )
    pairs = [one for one in found if len(one.candidates) > 1]
    ahead = [
        len(text_of(one.chosen.response)) - len(text_of(one.rejected.response)) for one in pairs
    ]
    shares = {
        "ties": counts.ties,
        "identical pairs": counts.identical,
        "repeated pairs": counts.repeats,
        "contradictory pairs": counts.contradictions,
    }
    measured = {
        name: mean([1.0] * count + [0.0] * (counts.pairs - count)) for name, count in shares.items()
    }
    if differing := counts.chosen_longer + counts.rejected_longer:
        longer = [1.0] * counts.chosen_longer + [0.0] * (differing - counts.chosen_longer)
        measured["chosen is the longer one"] = mean(longer)
    pictures = blank_images(pairs)
    findings = diagnose(data=counts, pictures=pictures)
    unreadable = len(read) - len(found) + counts.unreadable
    notes = [f"{unreadable} of {len(read)} records cannot be read."] if unreadable else []
    results = Results(
        "Faults of the data",
        {"share": measured},
        n=counts.pairs,
        notes=[*notes, *map(str, findings)],
        details={"counts": vars(counts), "pictures": vars(pictures), "unreadable": unreadable},
        sections=[
            diagnosis(findings),
            section(
                "Lengths",
                histograms({"characters by which the chosen response is longer": ahead}),
                note="Without bias it lies evenly around 0.",
            ),
        ],
        items="pairs",
    )  # fmt: skip
    return save_results(out, results, seconds={"counts": time.perf_counter() - began}, seed=0)
