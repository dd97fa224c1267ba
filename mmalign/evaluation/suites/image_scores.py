"""`mmalign evaluate image-scores`: what rewards such as CLIPScore think of a model's images."""

from __future__ import annotations

import time
from pathlib import Path

from mmalign.data.cache import Cache
from mmalign.errors import UserError
from mmalign.evaluation.images.diversity import diversity
from mmalign.evaluation.images.drawing import DrawingOptions, DrawnModel, draw_all
from mmalign.evaluation.images.prompts import read_prompts
from mmalign.evaluation.images.scoring import by_category, score
from mmalign.evaluation.images.sheet import sheet
from mmalign.evaluation.intervals import Estimate, Interval
from mmalign.evaluation.suite import Results, save_results
from mmalign.settings import save_settings

DRAWING = DrawingOptions()


def image_scores(
    *,
    model: DrawnModel,
    prompts: list[Path],
    rewards: tuple[str, ...] = ("clip",),
    spread: str | None = None,
    drawing: DrawingOptions = DRAWING,
    out: Path = Path("runs/image-scores"),
) -> dict[str, dict[str, Interval]]:
    """Mean rewards of the images that a model draws: CLIPScore, HPS, PickScore and others.

    Draws every prompt, scores the images, and gives means over all prompts and over each category.
    With a baseline, the same prompts and seeds are drawn by both and compared pair by pair. A model
    that was aligned with a reward gains most by that very reward: judge it by others as well.

    Model:
        model: See DrawnModel.

    Data:
        prompts: Files of prompts: text, PartiPrompts' TSV, HPS v2's JSON lists, JSON lines; or a
            folder of them.

    Scores:
        rewards: Rewards by name, as in clip, pick, "hps(version='v2.1')" (times 100 they are the
            figures of HPS v2's benchmark), image_reward, aesthetic, or a weighted sum of several.
        spread: Also how much the images of one prompt differ, by this CLIP model (hub id or folder
            of transformers or open_clip); needs --per-prompt 2 or more.

    Drawing:
        drawing: See DrawingOptions.

    Output:
        out: Folder for images, metrics.json and report.html.

    Examples:
        mmalign evaluate image-scores --model ./sd15 --prompts PartiPrompts.tsv --rewards clip pick
        mmalign evaluate image-scores --model ./sd15 --adapter runs/align-diffusion/model
          --prompts hps_prompts/ --rewards "hps(version='v2.1')"
    """
    save_settings(out / "run.yaml", "evaluate image-scores", image_scores, locals())
    from mmalign.rewards.encoders import load_encoder
    from mmalign.rewards.table import reward

    if spread and drawing.per_prompt < 2:
        raise UserError("one image of a prompt does not differ", hint="give --per-prompt 2 or more")
    asked = read_prompts(prompts)[: drawing.limit]
    began = time.perf_counter()
    drawn = draw_all(asked, model, drawing, out)
    drew = time.perf_counter()
    cache = Cache(out / "scores.sqlite")
    measured: dict[str, dict[str, Estimate]] = {stage: {} for stage in drawn}
    for spec in rewards:
        for stage, values in score(asked, drawn, reward(spec, cache=cache), spec).items():
            measured[stage] |= by_category(spec, values, asked)
    if spread:
        encoder = load_encoder(spread, None)
        for stage, images in drawn.items():
            measured[stage]["diversity"] = diversity(asked, images, encoder)
    results = Results(
        "Image scores",
        measured,
        n=len(asked),
        sections=[sheet(asked, drawn)],
        notes=[f"{drawing.per_prompt} image(s) of each prompt; the files are in images-*."],
    )
    seconds = {"images": drew - began, "scores": time.perf_counter() - drew}
    return save_results(out, results, seconds=seconds, seed=drawing.seed)
