"""`mmalign evaluate win-rate`: how often a model's image is preferred to its baseline's."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from mmalign.data.cache import Cache
from mmalign.errors import UserError
from mmalign.evaluation.images.comparing import judged_wins
from mmalign.evaluation.images.drawing import DrawingOptions, DrawnModel, draw_all
from mmalign.evaluation.images.prompts import read_prompts
from mmalign.evaluation.images.scoring import Floats, by_category, over_prompts, score, wins
from mmalign.evaluation.images.sheet import SHOWN, sheet
from mmalign.evaluation.intervals import Estimate, Interval
from mmalign.evaluation.suite import Results, save_results
from mmalign.rewards.judge import JudgeOptions
from mmalign.settings import save_settings

DRAWING, NOBODY = DrawingOptions(), JudgeOptions(judge="")


def win_rate(
    *,
    model: DrawnModel,
    prompts: list[Path],
    rewards: tuple[str, ...] = (),
    judge: JudgeOptions = NOBODY,
    drawing: DrawingOptions = DRAWING,
    out: Path = Path("runs/win-rate"),
) -> dict[str, dict[str, Interval]]:
    """How often the images of a model are preferred to those of its baseline.

    Both draw every prompt with the same seeds. A reward prefers the image that it scores higher, a
    judge (a vision-language model behind an endpoint) the one that it picks, asked in both orders;
    ties count one half, and 0.5 says that nothing changed. A model that was aligned with a reward
    gains most by that very reward: judge it by others as well.

    Model:
        model: See DrawnModel.

    Data:
        prompts: Files of prompts: text, PartiPrompts' TSV, HPS v2's JSON lists, JSON lines; or a
            folder of them.

    Scores:
        rewards: Rewards by name, as in pick, clip, "hps(version='v2.1')"; a weighted sum of several
            votes as one. By default pick, unless a judge is asked.

    Judge:
        judge: See JudgeOptions. Without a name no judge is asked.

    Drawing:
        drawing: See DrawingOptions.

    Output:
        out: Folder for images, metrics.json and report.html.

    Examples:
        mmalign evaluate win-rate --model ./sd15 --adapter runs/align-diffusion/model
          --prompts PartiPrompts.tsv --rewards pick clip aesthetic
        mmalign evaluate win-rate --model ./aligned --baseline ./sd15 --prompts prompts.txt
          --judge Qwen/Qwen2.5-VL-7B-Instruct --judge-url http://localhost:8000/v1
    """
    save_settings(out / "run.yaml", "evaluate win-rate", win_rate, locals())
    from mmalign.rewards.table import reward

    if len(model.stages()) < 2:
        raise UserError(
            "a win rate needs two models", hint="give an --adapter on the model, or a --baseline"
        )
    asked = read_prompts(prompts)[: drawing.limit]
    began = time.perf_counter()
    drawn = draw_all(asked, model, drawing, out)
    drew = time.perf_counter()
    before: dict[str, Estimate] = {}
    after: dict[str, Estimate] = {}
    won: list[Floats] = []
    cache = Cache(out / "scores.sqlite")
    for spec in rewards or ([] if judge.judge else ["pick"]):
        scorer = reward(spec, cache=cache)
        old, new = score(asked, drawn, scorer, spec).values()
        won.append(wins(new, old))
        after |= by_category(f"win rate by {spec}", won[-1], asked)
        before[spec], after[spec] = over_prompts(old), over_prompts(new)
    if judge.judge:
        voted = judged_wins(asked, drawn["after"], drawn["before"], judge.open(out / "judge.jsonl"))
        won.append(voted)
        after |= by_category(f"win rate by {judge.judge}", voted, asked)
    results = Results(
        "Win rate",
        {"before": before, "after": after},
        n=len(asked),
        notes=[f"{drawing.per_prompt} image(s) of each prompt; the files are in images-*."],
        details={"undecided": int(sum(np.isnan(each).sum() for each in won))},
        sections=[
            sheet([asked[i] for i in order], drawn, title=title, note=note)
            for title, order, note in _extremes(won)
        ],
    )
    seconds = {"images": drew - began, "scores": time.perf_counter() - drew}
    return save_results(out, results, seconds=seconds, seed=drawing.seed)


def _extremes(won: list[Floats]) -> list[tuple[str, list[int], str]]:
    """The prompts whose first images won and lost most clearly, over all who judged."""
    with np.errstate(invalid="ignore"):
        votes = np.nan_to_num(np.stack([each[:, 0] for each in won]), nan=0.5).mean(0)
    order = np.argsort(-votes, kind="stable")
    best = [int(i) for i in order if votes[i] > 0.5][: SHOWN // 2]
    worst = [int(i) for i in order[::-1] if votes[i] < 0.5][: SHOWN // 2]
    shown = [
        ("Where the model after won", best, "The first image of each prompt, by all who judged."),
        ("Where it lost", worst, "The same, where the model before was preferred."),
    ]
    return [each for each in shown if each[1]]
