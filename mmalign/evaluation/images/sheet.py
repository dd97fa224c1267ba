"""Contact sheets: what each model drew for the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from mmalign.data.gallery import small_jpeg
from mmalign.evaluation.images.drawing import Drawn
from mmalign.evaluation.images.prompts import ImagePrompt
from mmalign.report.page import section
from mmalign.report.pictures import Picture, side_by_side

SHOWN = 24
SIDE = 320  # pixels of the longer side on the page


def sheet(
    prompts: Sequence[ImagePrompt],
    drawn: Mapping[str, Drawn],
    *,
    title: str = "Images",
    note: str = "The first prompts, with the first image of each.",
    verdicts: Mapping[str, Mapping[str, tuple[bool, str]]] | None = None,
) -> Markup:
    """Up to 24 prompts with their first image of every stage.

    verdicts: by stage and prompt id, whether that image is right, and what to say beside it.
    """
    rows = []
    for prompt in prompts[:SHOWN]:
        said, pictures = prompt.text, {}
        for stage, images in drawn.items():
            good, fault = (verdicts or {}).get(stage, {}).get(prompt.id, (None, ""))
            pictures[stage] = Picture(small_jpeg(images[prompt.id][0], SIDE)[0], good)
            said += f" [{stage}: {fault}]" if fault else ""
        rows.append((said, pictures))
    return section(title, side_by_side(rows, good="right", bad="wrong"), note=note)
