"""Questions put to a model, its answers kept as they come: a stopped run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmalign.errors import BadSample, UserError
from mmalign.media import digest
from mmalign.records import Media, Message, Sample, Text, media_of, text_of
from mmalign.rewards.endpoint import Endpoint
from mmalign.rewards.judge import Judge
from mmalign.training.log import JsonLines, console, progress
from mmalign.training.seeds import derive

Prompt = tuple[Message, ...]
Sampler = Callable[[Sequence[Prompt], Sequence[int]], Sequence[Sample]]
"""Prompts and a seed each to samples, as an adapter's `sample` does it."""


@dataclass(frozen=True)
class Question:
    """What a model is asked; `id` tells it from the other questions of its suite."""

    id: str
    prompt: Prompt


def about_image(image: Path | Media, text: str) -> Prompt:
    """A prompt with an image and a text about it."""
    media = Media("image", path=str(image)) if isinstance(image, Path) else image
    return (Message("user", (media, Text(text))),)


@dataclass(frozen=True, kw_only=True)
class AskedModel:
    """Which model answers.

    Args:
        model: Hub id or folder of an image-text-to-text model; or a .jsonl file of answers, one
            {"id", "answer"} a line, to be scored as they are.
        adapter: Folder of a LoRA on the model.
        baseline: Another model, or file of answers, that is asked the same; the results show both
            and their difference. For the model without its adapter, give its name again.
        url: OpenAI-compatible endpoint that serves model and baseline under these names, such as
            vLLM's http://localhost:8000/v1; they are then asked there, not loaded.
        key: Name of the environment variable that holds the endpoint's key.
        precision: Arithmetic and weights of the model.
        chat_template: Jinja template, or a file with one, in place of the model's own.
        trust_remote_code: Run code that comes with the model.
    """

    model: str
    adapter: str | None = None
    baseline: str | None = None
    url: str | None = None
    key: str = "OPENAI_API_KEY"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    chat_template: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.url is not None and self.adapter is not None:
            raise UserError(
                "an endpoint serves models by name, and takes no --adapter",
                hint="let it serve the adapter, and give the name under which it does as --model",
            )

    def stages(self) -> dict[str, tuple[str, str | None]]:
        """Names of the stages in the results, each with its model and adapter."""
        if self.baseline is None:
            return {"model": (self.model, self.adapter)}
        return {"before": (self.baseline, None), "after": (self.model, self.adapter)}


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How it answers.

    Args:
        max_new_tokens: Tokens of an answer at most. Longer answers hallucinate more: compare
            figures at one length only.
        temperature: 0 takes the likeliest token each time.
        batch_size: Questions that are answered together.
        limit: Ask so many questions only.
        resume: Go on with the answers in the output folder; otherwise ask anew.
        seed: Of what is drawn at random.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    batch_size: int = 16
    limit: int | None = None
    resume: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Asked:
    """Answers by stage and id, for the questions that every stage answered.

    refused: the other questions, with the reason.
    """

    questions: list[Question]
    answers: dict[str, dict[str, str]]
    refused: dict[str, str]

    def texts(self, stage: str) -> list[str]:
        """The answers of a stage, in the order of the questions."""
        return [self.answers[stage][question.id] for question in self.questions]


def ask_all(
    questions: Sequence[Question], models: AskedModel, options: AnswerOptions, out: Path
) -> Asked:
    """Put the questions to every stage's model. Answers are kept in `out`/answers-STAGE.jsonl.

    Raises UserError for questions that share an id, when none could be answered, and when the
    answers in `out` are another model's.
    """
    questions = questions[: options.limit]
    counts = Counter(question.id for question in questions)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise UserError(f"{len(twice)} ids stand for several questions, as {twice[0]!r} does")
    if not questions:
        raise UserError("there are no questions to ask")
    answers: dict[str, dict[str, str]] = {}
    refused: dict[str, str] = {}
    for stage, (model, adapter) in models.stages().items():
        if is_file(model):
            answers[stage] = read_answers(Path(model))
            missing = [q.id for q in questions if q.id not in answers[stage]]
            refused |= dict.fromkeys(missing, f"{model} has no answer to it")
        else:
            sampler: ModelSampler | ServedSampler = ModelSampler(models, model, adapter, options)
            if models.url is not None:
                sampler = ServedSampler(models, model, options)
            answers[stage], bad = ask(
                questions,
                sampler,
                out / f"answers-{stage}.jsonl",
                asked=sampler.identity(),
                batch_size=options.batch_size,
                seed=options.seed,
                resume=options.resume,
                title=f"answers {stage}",
            )
            refused |= bad
    _save_refused(out / "refused.jsonl", refused)
    kept = [question for question in questions if question.id not in refused]
    if not kept:
        name, reason = next(iter(refused.items()))
        raise UserError(
            f"none of the {len(refused)} questions was answered; of {name!r} because {reason}"
        )
    return Asked(kept, answers, refused)


def ask(
    questions: Sequence[Question],
    sample: Sampler,
    file: Path,
    *,
    asked: Mapping[str, Any],
    batch_size: int = 16,
    seed: int = 0,
    resume: bool = True,
    title: str = "answers",
) -> tuple[dict[str, str], dict[str, str]]:
    """Answers by id, and the reasons for which questions were refused.

    file: JSON lines that grow batch by batch; what it holds is not asked again, unless its prompt
        has changed. asked: whatever answers depend on; it is the file's first line.
    Raises UserError when the file's first line is another one.
    """
    if not resume:
        file.unlink(missing_ok=True)
    lines, known = JsonLines(file), _known(file, asked)
    if not lines.rows():
        lines.write({"asked": dict(asked)})
    refused: dict[str, str] = {}
    waiting = []
    for question in questions:
        try:
            if known.get(question.id, {}).get("prompt") != _prompt_id(question):
                waiting.append(question)
        except BadSample as error:
            refused[question.id] = str(error)
    answers = {q.id: str(known[q.id]["answer"]) for q in questions if q.id in known}
    total = len(questions) - len(refused)
    with progress(title, total=total, done=total - len(waiting)) as advance:
        for start in range(0, len(waiting), batch_size):
            some = waiting[start : start + batch_size]
            for question, answer in _answered(some, sample, seed):
                if isinstance(answer, BadSample):
                    refused[question.id] = str(answer)
                else:
                    answers[question.id] = answer
                    lines.write(_row(question, answer))
                advance()
    return {name: text for name, text in answers.items() if name not in refused}, refused


def _answered(
    questions: Sequence[Question], sample: Sampler, seed: int
) -> Iterator[tuple[Question, str | BadSample]]:
    """Answers to a batch; where one question is bad, each by itself."""
    seeds = [derive(seed, "evaluate", question.id) for question in questions]
    try:
        samples = sample([question.prompt for question in questions], seeds)
    except BadSample as error:
        if len(questions) == 1:
            yield questions[0], error
            return
        for question in questions:
            yield from _answered([question], sample, seed)
        return
    for question, made in zip(questions, samples, strict=True):
        yield question, text_of(made.response)


def read_answers(file: Path) -> dict[str, str]:
    """Answers by id out of a file of JSON lines, our own or one {"id", "answer"} a line.

    Raises UserError naming the line that is wrong.
    """
    answers = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            if "asked" not in row:
                answers[str(row["id"])] = str(row["answer"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}, line {number}: {error!r}",
                hint='one {"id": ..., "answer": ...} a line is wanted',
            ) from error
    return answers


def is_file(model: str) -> bool:
    """Whether this is a file of answers in place of a model."""
    return model.endswith(".jsonl")


class ModelSampler:
    """Answers of a model that is loaded at the first question: scoring alone needs none."""

    def __init__(
        self, models: AskedModel, model: str, adapter: str | None, options: AnswerOptions
    ) -> None:
        self.models, self.model, self.adapter, self.options = models, model, adapter, options
        self.policy: Any = None

    def identity(self) -> dict[str, Any]:
        """What the answers depend on."""
        return {
            "model": self.model,
            "weights": weights_mark(self.model),
            "adapter": self.adapter,
            "adapter_weights": self._adapter_mark(),
            "precision": self.models.precision,
            "chat_template": self.models.chat_template,
            "max_new_tokens": self.options.max_new_tokens,
            "temperature": self.options.temperature,
            "seed": self.options.seed,
        }

    def _adapter_mark(self) -> str | None:
        if self.adapter is None:
            return None
        if not (Path(self.adapter) / "adapter_config.json").is_file():
            raise UserError(
                f"{self.adapter} holds no peft adapter",
                hint="--adapter is a folder with adapter_config.json, such as runs/align-vlm/model",
            )
        return weights_mark(self.adapter)

    def __call__(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Sequence[Sample]:
        if self.policy is None:
            self.policy = self._load()
        samples: list[Sample] = self.policy.sample(
            prompts,
            seeds,
            max_new_tokens=self.options.max_new_tokens,
            temperature=self.options.temperature,
            batch_size=len(prompts),
        )
        return samples

    def _load(self) -> Any:
        from mmalign.adapters.vision_language import load_vision_language

        console.print(f"loading {self.model}{f' with {self.adapter}' if self.adapter else ''}")
        return load_vision_language(
            self.model,
            adapter=self.adapter,
            precision=self.models.precision,
            chat_template=self.models.chat_template,
            trust_remote_code=self.models.trust_remote_code,
            trained=False,
        )


class ServedSampler:
    """Answers of a model that an OpenAI-compatible endpoint serves."""

    def __init__(self, models: AskedModel, model: str, options: AnswerOptions) -> None:
        assert models.url is not None  # or the model is loaded
        self.models, self.options = models, options
        endpoint = Endpoint(models.url, key=os.environ.get(models.key))
        drawn = {"seed": options.seed} if options.temperature else {}
        self.served = Judge(
            model,
            endpoint,
            temperature=options.temperature,
            max_tokens=options.max_new_tokens,
            at_once=options.batch_size,
            cut=True,
            extra=drawn,
        )

    def identity(self) -> dict[str, Any]:
        """What the answers depend on, as far as it can be known."""
        return {"model": self.served.model, "url": self.models.url, **self.served.settings}

    def __call__(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Sequence[Sample]:
        samples = []
        for prompt, answer in zip(prompts, self.served.ask_all(prompts, str), strict=True):
            if isinstance(answer, BadSample):
                raise answer
            samples.append(Sample(prompt, (Text(answer),)))
        return samples


def weights_mark(model: str) -> str | None:
    """What tells a model's weights from others under its name: of a folder, a hash over names,
    sizes and three pieces of its files; of a hub model, the commit that is in the cache."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(model, "config.json")
        except HFValidationError:
            return None  # it cannot be a model at all, which loading will say
        return Path(found).parent.name if isinstance(found, str) else None
    mark = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in _TELLING):
        size = file.stat().st_size
        mark.update(f"{file.relative_to(folder)} {size}".encode())
        with file.open("rb") as content:
            for start in sorted({0, size // 2, max(0, size - _PIECE)}):
                content.seek(start)
                mark.update(content.read(_PIECE))
    return mark.hexdigest()[:16]


_PIECE = 1 << 16
_TELLING = {".safetensors", ".json", ".jinja", ".txt", ".model"}


def _known(file: Path, asked: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of earlier answers, by id. A half-written last line is dropped from the file."""
    lines = JsonLines(file)
    lines.keep(lambda row: True)
    head, *rows = lines.rows() or [{}]
    if head:
        before = head.get("asked", {})
        differ = [
            f"{name} was {before.get(name)!r} and is {value!r}"
            for name, value in asked.items()
            if before.get(name) != value
        ]
        if differ:
            raise UserError(
                f"{file} holds other answers: {'; '.join(differ)}",
                hint="give another --out, or --no-resume to ask anew",
            )
    return {row["id"]: row for row in rows}


def _prompt_id(question: Question) -> str:
    """Raises BadSample for an image that is not there."""
    for media in media_of(question.prompt):
        digest(media)
    return Sample(question.prompt, ()).prompt_id


def _row(question: Question, answer: str) -> dict[str, Any]:
    asked = " ".join(text_of(message.parts) for message in question.prompt)
    return {
        "id": question.id,
        "question": asked,
        "answer": answer,
        "prompt": _prompt_id(question),
    }


def _save_refused(file: Path, refused: Mapping[str, str]) -> None:
    file.unlink(missing_ok=True)
    for name, reason in refused.items():
        JsonLines(file).write({"id": name, "reason": reason})
