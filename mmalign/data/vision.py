"""The public formats of vision-language preferences, each a function from a row to a preference.

Columns are those that the datasets' cards and loaders name. What two datasets write alike is read
by one function.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmalign.data import fields, reports, trl
from mmalign.data.corrections import edited_only, weigh_corrections
from mmalign.data.errors import FieldError
from mmalign.data.fields import PART, Row
from mmalign.data.placeholders import Turn, messages, response
from mmalign.records import (
    Media,
    Message,
    Part,
    Preference,
    Provenance,
    Sample,
    Text,
    pair,
    text_of,
)

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""The names that conversations use, and ours."""

ASPECTS = ("Helpfulness", "Visual Faithfulness", "Ethical Considerations")
MM_RLHF_ASPECTS = ("faithfulness", "helpfulness", "ethical")


def rlhf_v(row: Row, root: Path | None = None) -> Preference:
    """RLHF-V: question and both answers as JSON in `text`; chosen corrects rejected, and the words
    that were changed are weighted. arXiv:2312.00849."""
    text = _object(row.get("text"), "text")
    prompt = _asked(text.get("question"), "text", _media(row, root))
    good, bad = (response(text.get(side), "text")[0].text for side in ("chosen", "rejected"))
    chosen, rejected = weigh_corrections(good, bad)
    return _pair(prompt, (chosen,), (rejected,), source=_source("rlhf-v", row))


def question(row: Row, root: Path | None = None) -> Preference:
    """RLAIF-V (arXiv:2405.17220), SPA-VL (arXiv:2406.12030) and MMPR (arXiv:2411.10442)."""
    prompt = _asked(row.get("question"), "question", _media(row, root))
    return _answers(row, prompt, "rlaif-v")


def vlfeedback(row: Row, root: Path | None = None) -> Preference:
    """VLFeedback: answers of several models, ranked by the mean of their numeric ratings from 1 to
    5; ratings such as "N/A" do not count. Equal ratings are ties. arXiv:2410.09421."""
    prompt = _asked(row.get("prompt"), "prompt", _media(row, root))
    at = "completions"
    rated = [
        (_mean_rating(each.get("annotations")), Sample(prompt, response(each.get("response"), at)))
        for each in _structs(row.get(at), at)
    ]
    graded = sorted(
        ((grade, sample) for grade, sample in rated if grade is not None),
        key=lambda found: -found[0],
    )
    if len(graded) < 2:
        raise FieldError(
            at, f"{len(graded)} of {len(rated)} have ratings in numbers, and a comparison needs two"
        )
    grades, samples = zip(*graded, strict=True)
    return Preference(samples, grades, source=_source("vlfeedback", row))


def mm_rlhf_ranked(row: Row, root: Path | None = None) -> Preference:
    """MM-RLHF's `data.jsonl`: answers of several models with people's ratings of each, ranked by
    their mean. Equal means are ties, and the ranking that people gave besides stands in the source.
    arXiv:2502.10391."""
    prompt = _asked(row.get("question"), "question", _media(row, root))
    at = "models_output"
    answers = row.get(at)
    if not isinstance(answers, list):
        raise FieldError(at, "is missing" if answers is None else "is not a list of answers")
    ratings = {name: row[name] for name in MM_RLHF_ASPECTS if row.get(name) is not None}
    for name, given in ratings.items():
        if not isinstance(given, list) or len(given) != len(answers):
            raise FieldError(name, f"does not hold a rating for each of {len(answers)} answers")
    rated = [
        (mean, Sample(prompt, response(answer, at)))
        for place, answer in enumerate(answers)
        if (mean := _mean([given[place] for given in ratings.values()])) is not None
    ]
    if len(rated) < 2:
        raise FieldError(
            at, f"{len(rated)} of {len(answers)} answers have ratings, and a comparison needs two"
        )
    grades, samples = zip(*sorted(rated, key=lambda found: -found[0]), strict=True)
    source = _source("mm-rlhf", row, final_ranking=row.get("final_ranking"))
    return Preference(samples, grades, source=source)


def povid(row: Row, root: Path | None = None) -> Preference:
    """POVID: two whole conversations; the preference is about the first answer in which they
    differ. arXiv:2402.11411."""
    good = turns(row.get("conversations"), "conversations")
    bad = turns(row.get("rejected_conversations"), "rejected_conversations")
    differ = next((i for i, (a, b) in enumerate(zip(good, bad, strict=False)) if a != b), None)
    if differ is None:
        raise FieldError("rejected_conversations", "does not differ from conversations")
    if not good[differ][0] == bad[differ][0] == "assistant":
        raise FieldError(
            "rejected_conversations", f"differs in message {differ}, which is no answer"
        )
    prompt = messages(good[:differ], _media(row, root), "conversations")
    return _pair(
        prompt,
        response(good[differ][1], "conversations"),
        response(bad[differ][1], "rejected_conversations"),
        source=_source("povid", row),
    )


def placed(row: Row, root: Path | None = None) -> Preference:
    """MIA-DPO (arXiv:2410.17637) and MM-RLHF's pairs (arXiv:2502.10391): a prompt with
    placeholders. A prompt of messages is TRL's."""
    if not isinstance(row.get("prompt"), str):
        return trl.read(row, root)
    prompt = _asked(row["prompt"], "prompt", _media(row, root))
    return _answers(row, prompt, "mia-dpo" if "gt" in row else "mm-rlhf")


def mdpo(row: Row, root: Path | None = None) -> Preference:
    """mDPO's data: the prompt is rendered for LLaVA or Bunny, and is taken out of that template
    again. arXiv:2406.11839."""
    rendered = fields.text(row.get("prompt"), "prompt")
    inner = re.search(r"USER:\s*(.*?)\s*ASSISTANT:\s*$", rendered, re.DOTALL)
    asked = inner.group(1) if inner else rendered
    if "USER:" in asked or "ASSISTANT:" in asked:
        raise FieldError("prompt", "is rendered by a chat template that is not known here")
    return _answers(row, _asked(asked, "prompt", _media(row, root)), "mdpo")


OPA_PAIRS = ("standard_response", "AI_pseudo_response")
OPA_OWN = "original_generate_response"


def opa_dpo(row: Row, root: Path | None = None) -> Preference:
    """OPA-DPO, two preferences a row: the dataset's answer and the corrected one, each above what
    the model itself had said. Of the second, words are weighted by how wrong the expert's report
    found their sentence; a report that does not fit the answers leaves them unweighted, and the
    source says so. arXiv:2501.09695."""
    better = OPA_PAIRS[row.get(PART, 0)]
    good, bad = (response(row.get(name), name)[0] for name in (better, OPA_OWN))
    note = {}
    if better == OPA_PAIRS[1]:
        weighted = _opa_weighted(row, good.text, bad.text)
        note = {"weighted": weighted is not None}
        if weighted is not None:
            good, _, bad = weighted
    source = _source("opa-dpo", row, chosen=better, **note)
    prompt = _asked(row.get("queries"), "queries", _media(row, root))
    return _pair(prompt, (good,), (bad,), source=source)


def opa_dpo_four(row: Row, root: Path | None = None) -> Preference:
    """OPA-DPO as its whole objective wants it, four candidates a row: the dataset's answer, the
    correction weighted by how wrong its sentences were, the correction weighted by errors of
    seeing, and what the model had said. arXiv:2501.09695."""
    given, better, own = (response(row.get(name), name)[0] for name in (*OPA_PAIRS, OPA_OWN))
    weighted = _opa_weighted(row, better.text, own.text)
    if weighted is None:
        raise FieldError("AI_json_report", "does not fit the answers")
    prompt = _asked(row.get("queries"), "queries", _media(row, root))
    candidates = [Sample(prompt, (text,)) for text in (given, *weighted)]
    return Preference(tuple(candidates), (1.0, 1.0, 1.0, 0.0), source=_source("opa-dpo", row))


def _opa_weighted(row: Row, better: str, own: str) -> tuple[Text, Text, Text] | None:
    """The correction by errors, the correction by errors of seeing, and the model's own answer by
    errors; None where the report is empty or speaks of other answers."""
    given = row.get("AI_json_report")
    if not given:
        return None
    try:
        report = reports.sentences(_object(given, "AI_json_report"))
    except ValueError as error:
        raise FieldError("AI_json_report", str(error)) from error
    first = reports.corrected(report, better, lambda sentence: sentence.weight)
    second = reports.corrected(report, better, lambda sentence: sentence.seeing_weight)
    third = reports.generated(report, own, lambda sentence: sentence.weight)
    if not report or first is None or second is None or third is None:
        return None
    return first, second, third


def llava_rlhf(row: Row, root: Path | None = None) -> Preference:
    """LLaVA-RLHF's human preferences: a conversation and two answers, of which `preference` names
    the better one, 1 or 2. arXiv:2309.14525."""
    outputs = [
        response(_structs([row.get(name)], name)[0].get("value"), name)
        for name in ("output_1", "output_2")
    ]
    better = row.get("preference")
    if better not in (1, 2):
        raise FieldError("preference", f"is {better!r}, but 1 or 2 is wanted")
    good, bad = outputs if better == 1 else outputs[::-1]
    asked = turns(row.get("conversations"), "conversations")
    prompt = messages(asked, _media(row, root), "conversations")
    return _pair(prompt, good, bad, source=_source("llava-rlhf", row))


def symmpo(row: Row, root: Path | None = None) -> Preference:
    """SymMPO, two preferences a row: one for each of two images that look alike.
    arXiv:2506.11712."""
    number = row.get(PART, 0) + 1
    image = fields.media(row.get(f"image_{number}"), f"image_{number}", root)
    good, bad = f"resp_{number}_w", f"resp_{number}_l"
    return _pair(
        _asked(row.get("question"), "question", [image]),
        response(row.get(good), good),
        response(row.get(bad), bad),
        source=_source("symmpo", row, image=number),
    )


IC_VCO_SPANS = ("chosen_response_spans", "rejected_response_spans")


def ic_vco(row: Row, root: Path | None = None) -> Preference:
    """IC-VCO: two images that look alike and the right answer to each, which are candidates of one
    grade with an image each; objectives `icvco` and `svco` take them so. Only the characters in the
    spans count where an objective weighs tokens. arXiv:2605.31312."""
    media = _media(row, root)
    if len(media) != 2:
        raise FieldError("images", f"has {len(media)}, but one for each of two answers is wanted")
    samples = []
    for image, side, spans in zip(media, ("chosen", "rejected"), IC_VCO_SPANS, strict=True):
        (answer,) = response(row.get(side), side)
        try:
            edited = edited_only(answer.text, row.get(spans) or ())
        except ValueError as error:
            raise FieldError(spans, str(error)) from error
        samples.append(Sample(_asked(row.get("prompt"), "prompt", [image]), (edited,)))
    return Preference(tuple(samples), (1.0, 1.0), source=_source("ic-vco", row))


def llama_factory(row: Row, root: Path | None = None) -> Preference:
    """LLaMA-Factory's ranking data, also RLHF-V in that form: `conversations` is the prompt,
    `chosen` and `rejected` are one message each."""
    prompt = messages(
        turns(row.get("conversations"), "conversations"), _media(row, root), "conversations"
    )
    (good,), (bad,) = (turns([row.get(side)], side) for side in ("chosen", "rejected"))
    source = _source("llama-factory", row)
    return _pair(prompt, response(good[1], "chosen"), response(bad[1], "rejected"), source=source)


def ms_swift(row: Row, root: Path | None = None) -> Preference:
    """ms-swift's preferences: `messages` ends with the chosen answer, `rejected_response` is the
    other; `rejected_images` are what the rejected answer looks at instead."""
    *said, last = turns(row.get("messages"), "messages")
    if last[0] != "assistant":
        raise FieldError("messages", "has to end with the chosen answer of the assistant")
    prompt = messages(said, _media(row, root), "messages")
    other = prompt
    if row.get("rejected_images"):
        cells = _several(row["rejected_images"])
        instead = [fields.media(cell, "rejected_images", root) for cell in cells]
        other = messages(said, instead, "rejected_images")
    good = response(last[1], "messages")
    bad = response(row.get("rejected_response", last[1]), "rejected_response")
    if other == prompt:
        return _pair(prompt, good, bad, source=_source("ms-swift", row))
    return pair(Sample(prompt, good), Sample(other, bad), source=_source("ms-swift", row))


def _answers(row: Row, prompt: tuple[Message, ...], builder: str) -> Preference:
    """The row's `chosen` and `rejected` on one prompt, with the margin if there is one."""
    margin = row.get("ls_factor")
    aux = {} if margin is None else {"margin": fields.number(margin, "ls_factor")}
    good, bad = (response(row.get(side), side) for side in ("chosen", "rejected"))
    return _pair(prompt, good, bad, aux=aux, source=_source(builder, row))


def _pair(
    prompt: tuple[Message, ...],
    chosen: tuple[Part, ...],
    rejected: tuple[Part, ...],
    *,
    source: Provenance,
    aux: dict[str, float] | None = None,
) -> Preference:
    if text_of(chosen).strip() == text_of(rejected).strip():
        raise FieldError("rejected", "is the same as chosen")
    return pair(Sample(prompt, chosen), Sample(prompt, rejected), aux=aux, source=source)


def _asked(value: Any, field: str, media: Sequence[Media]) -> tuple[Message, ...]:
    return messages([("user", fields.text(value, field))], media, field)


def turns(value: Any, field: str) -> list[Turn]:
    """Messages {from, value} or {role, content}; a struct of lists is turned round first."""
    found = []
    for turn in _structs(value, field):
        name = turn.get("from", turn.get("role"))
        if name not in ROLES:
            raise FieldError(field, f"has a message from {name!r}: {', '.join(ROLES)} are known")
        found.append((ROLES[name], fields.text(turn.get("value", turn.get("content")), field)))
    return found


def _structs(value: Any, field: str) -> list[Row]:
    """A list of structs; `datasets` may give it as a struct of lists."""
    if isinstance(value, dict) and value and all(isinstance(each, list) for each in value.values()):
        if len({len(each) for each in value.values()}) != 1:
            raise FieldError(field, "has lists of different lengths")
        return [dict(zip(value, each, strict=True)) for each in zip(*value.values(), strict=True)]
    if not isinstance(value, list) or not value or not all(isinstance(v, dict) for v in value):
        raise FieldError(field, "is missing" if value is None else "is not a list of objects")
    return value


MEDIA = ("images", "image", "img_path", "image_path", "image_bytes")
"""Columns with images, in order: a row may have the bytes in one and their origin in another."""


def _media(row: Row, root: Path | None) -> list[Media]:
    """The images and videos of a row, in order; none for a row without."""
    for name in MEDIA:
        if row.get(name):
            return [_image(cell, name, root) for cell in _several(row[name])]
    return [fields.media(c, "video", root, kind="video") for c in _several(row.get("video"))]


def _image(cell: Any, name: str, root: Path | None) -> Media:
    """`image_bytes` is base64 in a text, with or without "data:" before it."""
    if name == "image_bytes" and isinstance(cell, str) and not cell.startswith("data:"):
        cell = {"bytes": cell}
    return fields.media(cell, name, root)


def _several(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return value if isinstance(value, list) else [value]


def _object(value: Any, field: str) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise FieldError(field, f"is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise FieldError(field, "is not a JSON object")
    return value


def _mean_rating(annotations: Any) -> float | None:
    """The mean of the ratings that are numbers; None where none is."""
    if not isinstance(annotations, dict):
        raise FieldError("completions", "has an answer without annotations")
    given = [str((annotations.get(aspect) or {}).get("Rating", "")).strip() for aspect in ASPECTS]
    return _mean(given)


def _mean(ratings: Sequence[Any]) -> float | None:
    """Of those that are numbers; None where none is."""
    known = [float(one) for one in map(str, ratings) if re.fullmatch(r"\d+(\.\d+)?", one)]
    return sum(known) / len(known) if known else None


def _source(builder: str, row: Row, **details: Any) -> Provenance:
    """Who made the row and from what, as far as it says."""
    kept = {name: row[name] for name in ("id", "idx", "ds_name", "origin_dataset") if row.get(name)}
    models = tuple(map(str, row.get("models") or ()))
    return Provenance(builder=builder, models=models, details={**kept, **details})
