"""`mmalign evaluate geneval`: whether images show the objects, counts, colours and places asked
for."""

from __future__ import annotations

import time
from pathlib import Path

from mmalign.errors import UserError
from mmalign.evaluation.images.drawing import DrawingOptions, DrawnModel, draw_all
from mmalign.evaluation.images.geneval import Verdict, judge, scores, threshold
from mmalign.evaluation.images.prompts import ImagePrompt, read_prompts
from mmalign.evaluation.images.sheet import sheet
from mmalign.evaluation.intervals import Interval
from mmalign.evaluation.suite import Results, save_results
from mmalign.files import whole_file
from mmalign.media import open_image
from mmalign.records import Media
from mmalign.settings import save_settings
from mmalign.training.log import JsonLines, progress

DRAWING = DrawingOptions(per_prompt=4)


def geneval(
    *,
    model: DrawnModel,
    metadata: Path,
    detector: str,
    colours: str | None = "ViT-L-14",
    colours_pretrained: str | None = "openai",
    drawing: DrawingOptions = DRAWING,
    out: Path = Path("runs/geneval"),
) -> dict[str, dict[str, Interval]]:
    """GenEval: whether images show the objects, counts, colours and places that prompts name.

    A detector looks for the objects, CLIP tells their colours, and fixed rules compare both with
    the benchmark's metadata. The score is the mean of six tasks' accuracies. Published numbers are
    those of one detector, Mask2Former with Swin-S on COCO: with another, compare your own models
    with one another only.

    Model:
        model: See DrawnModel.

    Data:
        metadata: The benchmark's evaluation_metadata.jsonl, with tag, include, exclude and prompt.

    Scores:
        detector: Hub id or folder of a detector or segmenter of transformers, for instance
            facebook/mask2former-swin-small-coco-instance.
        colours: CLIP model for colours, as in the reward clip; needed where metadata name colours.
        colours_pretrained: Its tag or checkpoint; none for a model of transformers.

    Drawing:
        drawing: See DrawingOptions. The benchmark draws four images of each prompt.

    Output:
        out: Folder for images, verdicts.jsonl, metrics.json and report.html.

    Examples:
        mmalign evaluate geneval --model ./sd15 --metadata evaluation_metadata.jsonl
          --detector facebook/mask2former-swin-small-coco-instance
    """
    save_settings(out / "run.yaml", "evaluate geneval", geneval, locals())
    asked = [_checked(prompt, metadata) for prompt in read_prompts([metadata])][: drawing.limit]
    look = _Eye(detector, colours, colours_pretrained, asked)
    began = time.perf_counter()
    drawn = draw_all(asked, model, drawing, out)
    drew = time.perf_counter()
    tasks = [prompt.category for prompt in asked]
    measured, verdicts = {}, {}
    for stage, images in drawn.items():
        found: dict[str, list[Verdict]] = {}
        with progress(f"objects {stage}", total=len(asked)) as advance:
            for prompt in asked:
                found[prompt.id] = [look(image, prompt) for image in images[prompt.id]]
                advance()
        _save(out / f"verdicts-{stage}.jsonl", found)
        right = [sum(v.right for v in found[p.id]) / len(found[p.id]) for p in asked]
        measured[stage] = scores(right, tasks)
        verdicts[stage] = {name: (own[0].right, own[0].fault) for name, own in found.items()}
    last = list(verdicts.values())[-1]
    shown = sorted(asked, key=lambda prompt: last[prompt.id][0])
    note = "Wrong ones first; the first image of each prompt, with what is wrong in it."
    results = Results(
        "GenEval",
        measured,
        n=len(asked),
        notes=[f"Objects by {detector}; {drawing.per_prompt} image(s) of each prompt."],
        sections=[sheet(shown, drawn, verdicts=verdicts, note=note)],
    )
    seconds = {"images": drew - began, "scores": time.perf_counter() - drew}
    return save_results(out, results, seconds=seconds, seed=drawing.seed)


class _Eye:
    """Looks at one image after the other, with models that are loaded once."""

    def __init__(
        self, detector: str, colours: str | None, pretrained: str | None, asked: list[ImagePrompt]
    ) -> None:
        from mmalign.evaluation.images.detectors import load_detector
        from mmalign.rewards.encoders import load_encoder

        self.detect = load_detector(detector)
        self.encoder = None
        if any("color" in clause for prompt in asked for clause in prompt.row["include"]):
            if colours is None:
                raise UserError("the metadata name colours", hint="give --colours a CLIP model")
            self.encoder = load_encoder(colours, pretrained)

    def __call__(self, media: Media, prompt: ImagePrompt) -> Verdict:
        from mmalign.evaluation.images.detectors import with_colours

        image = open_image(media)
        seen = self.detect(image, threshold(prompt.category))
        if self.encoder is None:
            return judge([each.found for each in seen], prompt.row)
        return judge(with_colours(image, seen, self.encoder), prompt.row)


def _checked(prompt: ImagePrompt, file: Path) -> ImagePrompt:
    for name in ("tag", "include"):
        if name not in prompt.row:
            raise UserError(
                f"{file}: {prompt.text!r} has no {name!r}",
                hint="the benchmark's evaluation_metadata.jsonl is wanted",
            )
    return prompt


def _save(file: Path, found: dict[str, list[Verdict]]) -> None:
    with whole_file(file) as partial:
        lines = JsonLines(partial)
        for name, verdicts in found.items():
            for number, verdict in enumerate(verdicts):
                lines.write(
                    {
                        "image": f"{name}_{number}.png",
                        "right": verdict.right,
                        "fault": verdict.fault,
                    }
                )
