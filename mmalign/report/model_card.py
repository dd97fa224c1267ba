"""The model card of a trained model: README.md beside its weights, with the hub's front matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mmalign import __version__
from mmalign.files import whole_file
from mmalign.report.figures import STAGES, Figure
from mmalign.report.page import template
from mmalign.report.scale import with_interval


def model_card(
    *,
    title: str,
    base_model: str,
    data: str,
    objective: str,
    settings: Mapping[str, Any],
    measured: Mapping[str, Mapping[str, Figure]],
    adapter: bool = True,
    library: str | None = None,
    loading: str | None = None,
    tags: Sequence[str] = (),
) -> str:
    """The card as Markdown.

    base_model: hub name or folder of the model that training started from.
    data: what it was trained on, in words or as a dataset's name.
    settings: as in run.yaml. measured: as in metrics.json; may be empty.
    adapter: whether the weights are a LoRA for peft or a whole model for transformers.
    library, loading: another library that reads the weights, and how it does, as Python.
    """
    front = {
        # A folder is no hub name, and the hub refuses a card that says otherwise.
        **({"base_model": base_model} if is_hub_name(base_model) else {}),
        "library_name": library or ("peft" if adapter else "transformers"),
        "tags": list(dict.fromkeys(["mmalign", "preference-optimization", *tags])),
    }
    stages = [stage for stage in STAGES if stage in measured]
    metrics = list(dict.fromkeys(metric for stage in stages for metric in measured[stage]))
    return template("model_card.md").render(
        front=yaml.safe_dump(front, sort_keys=False).strip(),
        title=title,
        base_model=base_model,
        data=data,
        objective=objective,
        settings=yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True).strip(),
        stages=stages,
        rows=[[metric, *(_figure(measured[s].get(metric)) for s in stages)] for metric in metrics],
        adapter=adapter,
        loading=loading,
        version=__version__,
    )


def save_model_card(folder: Path, card: str) -> None:
    """Write the card as README.md beside the weights."""
    with whole_file(folder / "README.md") as partial:
        partial.write_text(card, encoding="utf-8")


def is_hub_name(model: str) -> bool:
    """Whether this can be a model's name on a hub: `name` or `owner/name`, and no folder here."""
    parts = model.split("/")
    plain = all(part and not part.startswith((".", "~")) for part in parts)
    return plain and len(parts) <= 2 and not Path(model).exists()


def _figure(figure: Figure | None) -> str:
    return " ".join(with_interval(*figure)) if figure else ""
