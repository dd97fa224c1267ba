"""Expert correction: a model's own answers, and what an expert makes of them with few changes.

OPA-DPO (arXiv:2501.09695). The expert scores each sentence of an answer and rewrites what is wrong;
the correction stays near what the model says by itself. First the model is fine-tuned on dataset
answers and corrections, which makes them likely; that model is then the reference of the objective.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mmalign.adapters.loading import Modality
from mmalign.data.errors import FieldError
from mmalign.data.reports import SEEING, Sentence, corrected, generated
from mmalign.data_builders.command import as_command
from mmalign.data_builders.engine import Refused
from mmalign.data_builders.expert import OptionalJudge, open_expert
from mmalign.data_builders.records import QUESTION, Record, asked_about
from mmalign.data_builders.sampling import SampledModel, Sampling, cache_in, draw, load
from mmalign.errors import BadSample
from mmalign.records import Message, Preference, Provenance, Sample, Text, pair, text_of
from mmalign.rewards.judge import json_in
from mmalign.training.seeds import derive

PUBLISHED = Sampling(temperature=1.0, top_k=30, top_p=0.95)
NO_EXPERT = OptionalJudge()
RAMBLES = BadSample("the model's answer is empty or repeats itself")
REPEATED_WORD = 30
"""An answer that ends with the same word more often than this is left out, as published."""

REQUEST = """You check what a model said about an image, sentence by sentence.

Question: {question}

The model's answer:
{answer}
{reference}
First describe in one sentence what you see. Then go through the model's answer. For every sentence:
- copied_content: the sentence, word for word, without leaving any part of the answer out;
- score: 4 if it is right, 3 for a slip, 2 for an error, 1 for an invention;
- error_type: correct, image_recognition_error (something is seen wrongly) or
  language_comprehension_error (the question or the language is understood wrongly);
- rewritten_content: the sentence with the fewest changes that make it right; the same sentence if
  it is right; empty if it has to go;
- reason: why, in a few words.
If something essential is missing, say it in `added`, otherwise leave `added` empty.

Answer with JSON alone: {"image_description": "...", "sentences": [{"copied_content": "...",
"score": 4, "error_type": "...", "rewritten_content": "...", "reason": "..."}], "added": ""}"""

SENTENCE = {
    "copied_content": {"type": "string"},
    "score": {"type": "integer"},
    "error_type": {
        "type": "string",
        "enum": ["correct", "image_recognition_error", "language_comprehension_error"],
    },
    "rewritten_content": {"type": "string"},
    "reason": {"type": "string"},
}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    required = list(properties)
    return {
        "type": "object",
        "properties": dict(properties),
        "required": required,
        "additionalProperties": False,
    }


SCHEMA = _object(
    {
        "image_description": {"type": "string"},
        "sentences": {"type": "array", "items": _object(SENTENCE)},
        "added": {"type": "string"},
    }
)


@dataclass(frozen=True, kw_only=True)
class AskedModel(SampledModel):
    __doc__ = SampledModel.__doc__

    modality: Modality = "vlm"


@dataclass(frozen=True)
class Correction:
    """The answer as corrected, and the expert's report: sentences in the order of the answer."""

    text: str
    report: tuple[Sentence, ...]


def build(
    records: Iterable[Record],
    *,
    model: AskedModel,
    make: Literal["pairs", "four"] = "pairs",
    question: str = QUESTION,
    sampling: Sampling = PUBLISHED,
    expert: OptionalJudge = NO_EXPERT,
    local_expert: str | None = None,
    cache: Path | None = None,
    seed: int = 0,
) -> Iterator[Preference | Refused]:
    """Let an expert correct a model's own answers, and prefer what it made of them.

    The expert sees image, question, answer and, where there is one, the record's answer or caption.
    The tokens of a sentence weigh 1 to 2.5 by how wrong it was. First fine-tune on the chosen
    answers (--objective "nll()"), then align that model, as in arXiv:2501.09695.

    Pairs:
        make: pairs, the correction above the model's answer and, where the record has an answer,
            that above the model's; or four, both with the two weightings of the correction in one
            preference, for the objective opa_dpo.
        question: What is asked about images without a question of their own.

    Expert:
        local_expert: Hub id or folder of a vision-language model that corrects in place of a judge.
        cache: Folder for the answers, and for all that the expert was asked and said (judge.jsonl);
            by default .cache beside the dataset.
        seed: Of the model's answers.

    Examples:
        mmalign build expert-correction photos --model ./policy --judge gpt-4o --out corrected
        mmalign align-vlm --model ./policy --data corrected --objective "nll()" --merged --out opa
        mmalign align-vlm --model opa/merged --data corrected --objective "weighted(dpo(beta=0.1))"
    """
    asked = []
    for record in records:
        if reason := unseeable(record):
            yield Refused(record.id, reason, "image")
        elif make == "four" and _given(record) is None:
            yield Refused(record.id, "has no answer of its own, which --make four needs", "answers")
        else:
            asked.append(record)
    own = _answers(asked, model, question, sampling, cache, seed)
    whole = [place for place, answer in enumerate(own) if not rambles(answer)]
    requests = [_request(asked[place], question, own[place]) for place in whole]
    reads = [functools.partial(correction_in, answer=own[place]) for place in whole]
    judge = open_expert(expert, local_expert, cache)
    found = dict(zip(whole, judge.ask(requests, reads, SCHEMA), strict=True))
    for place, record in enumerate(asked):
        made = _made(record, question, own[place], found.get(place, RAMBLES), make)
        if isinstance(made, str):
            yield Refused(record.id, made)
            continue
        models = (model.name, expert.judge or str(local_expert))
        for preference in made:
            source = replace(preference.source, models=models, seed=seed)
            yield replace(preference, source=source)


def unseeable(record: Record) -> str:
    """What is wrong with a record's image, found before anything is asked about others."""
    try:
        if record.image is not None:
            record.pixels()
    except FieldError as error:
        return error.reason
    return ""


def rambles(answer: str) -> bool:
    """Whether an answer is empty, or ends by saying the same again."""
    sentences = re.findall(r"[^.!?]+", answer)
    words = answer.split()
    if not words or (len(sentences) > 1 and sentences[-1].strip() == sentences[-2].strip()):
        return True
    return words.count(words[-1]) > REPEATED_WORD


def correction_in(text: str, answer: str) -> Correction:
    """The correction in an expert's report on an answer.

    Raises ValueError, saying what was wanted, for a report that has another form, or whose copied
    sentences are not the answer, word for word and as a whole.
    """
    report: Any = json_in(text)
    entries = report.get("sentences") if isinstance(report, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("an object with a list of sentences is wanted")
    sentences = [_sentence(entry) for entry in entries]
    if _squashed("".join(sentence.copied for sentence in sentences)) != _squashed(answer):
        raise ValueError("the copied sentences are not the whole answer, word for word")
    return _applied(answer, sentences, str(report.get("added") or "").strip())


def _sentence(entry: Mapping[str, Any]) -> Sentence:
    copied, rewritten, score = (
        entry.get(name) for name in ("copied_content", "rewritten_content", "score")
    )
    if not isinstance(copied, str) or not isinstance(rewritten, str):
        raise ValueError("every sentence needs copied_content and rewritten_content")
    if isinstance(score, bool) or score not in (1, 2, 3, 4):
        raise ValueError(f"a score is 1, 2, 3 or 4, not {score!r}")
    seeing = str(entry.get("error_type")) == SEEING
    return Sentence(copied.strip(), rewritten.strip(), int(score), seeing)


def _applied(answer: str, sentences: Sequence[Sentence], added: str) -> Correction:
    """The answer with its sentences rewritten; what stands between them stays as it is."""
    report: list[Sentence] = []
    text, at = "", 0
    for sentence in filter(lambda sentence: sentence.copied, sentences):
        pattern = r"\s*".join(map(re.escape, _squashed(sentence.copied)))
        place = re.compile(pattern).search(answer, at)
        assert place is not None  # all that was copied is the answer
        between = answer[at : place.start()]
        if sentence.rewritten:
            text += (between if text else between.lstrip()) + sentence.rewritten
        report.append(replace(sentence, copied=place.group()))
        at = place.end()
    if added:
        text += f" {added}"
        report.append(Sentence("", added, 4, False))
    return Correction(text.strip(), tuple(report))


def _squashed(text: str) -> str:
    return "".join(text.split())


def _given(record: Record) -> str | None:
    return record.answers[0] if record.answers else record.caption


def _answers(
    records: Sequence[Record],
    model: SampledModel,
    question: str,
    sampling: Sampling,
    cache: Path | None,
    seed: int,
) -> list[str]:
    drawn = draw(
        functools.partial(load, model),
        f"{model.modality}/{model.precision}/{model.name}",
        [asked_about(record, record.question or question) for record in records],
        [derive(seed, "expert_correction", record.id) for record in records],
        sampling,
        cache_in(cache),
    )
    return [text_of(sample.response).strip() for sample in drawn]


def _request(record: Record, question: str, answer: str) -> tuple[Message, ...]:
    given = _given(record)
    text = REQUEST.replace("{question}", record.question or question).replace("{answer}", answer)
    text = text.replace("{reference}", f"\nNearly ideal would be:\n{given}\n" if given else "")
    return asked_about(record, text)


def _made(
    record: Record,
    question: str,
    own: str,
    correction: Correction | BadSample,
    make: Literal["pairs", "four"],
) -> list[Preference] | str:
    """The preferences of a record, or why there are none."""
    if isinstance(correction, BadSample):
        return str(correction)
    report, prompt = correction.report, asked_about(record, record.question or question)
    given = _given(record)
    texts = (
        corrected(report, correction.text, lambda sentence: sentence.weight),
        corrected(report, correction.text, lambda sentence: sentence.seeing_weight),
        generated(report, own, lambda sentence: sentence.weight),
    )
    if any(text is None for text in texts):
        return "the expert's report does not fit the answers"
    better, seeing, worse = (Sample(prompt, (text,)) for text in texts if text is not None)
    source = Provenance(
        "expert_correction",
        parents=(record.id,),
        details={"report": [asdict(sentence) for sentence in report]},
    )
    changed = correction.text != own
    made = []
    if make == "four" and changed and given is not None:
        candidates = (Sample(prompt, (Text(given),)), better, seeing, worse)
        made.append(Preference(candidates, (1.0, 1.0, 1.0, 0.0), source=source))
    if make == "pairs" and changed:
        made.append(pair(better, worse, source=source))
    if make == "pairs" and given is not None and given != own:
        plain = Sample(prompt, (Text(own),))
        made.append(pair(Sample(prompt, (Text(given),)), plain, source=source))
    return made or "the expert found nothing to correct"


command = as_command("expert-correction", build, parallel=False)
