"""A judge: a model behind an OpenAI-compatible endpoint, asked for texts or structured answers.

Every request and its answer stand in a file of JSON lines, which is a record of what was asked and
a cache: what it holds is not asked again, so that a stopped run goes on where it was.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mmalign.errors import BadSample, UserError
from mmalign.files import whole_file
from mmalign.media import digest, open_image, png
from mmalign.records import Media, Message, Part
from mmalign.rewards.endpoint import Endpoint

T = TypeVar("T")
Prompt = str | tuple[Message, ...]
"""A question to the judge: a text, or messages, whose images are sent along."""

Read = Callable[[str], T]
"""Makes something of the judge's text. Raises ValueError, saying what was wanted, if it cannot."""

ATTEMPTS = 3
"""How often a question is put again when its answer cannot be read."""


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Which model judges.

    Args:
        judge: The model's name at the endpoint.
        judge_url: OpenAI-compatible endpoint, such as http://localhost:8000/v1, where
            `transformers serve` or vLLM answers.
        judge_key: Name of the environment variable that holds the endpoint's key.
        judge_tokens: Tokens of a judgement at most.
        judge_per_minute: Requests a minute at most.
        judge_at_once: Requests under way at the same time.
        judge_budget: Tokens, read and written, that a run may use at most.
    """

    judge: str
    judge_url: str = "https://api.openai.com/v1"
    judge_key: str = "OPENAI_API_KEY"
    judge_tokens: int = 1024
    judge_per_minute: float | None = None
    judge_at_once: int = 8
    judge_budget: int | None = None

    def open(self, record: Path) -> Judge:
        """The judge, whose questions and answers are kept in the file `record`."""
        return Judge(
            self.judge,
            Endpoint(
                self.judge_url,
                key=os.environ.get(self.judge_key),
                per_minute=self.judge_per_minute,
            ),
            record=record,
            max_tokens=self.judge_tokens,
            at_once=self.judge_at_once,
            budget=self.judge_budget,
        )


class Judge:
    """A model that answers questions, each once.

    record: file of JSON lines with all questions and answers; None keeps them in memory only.
    temperature: 0 asks for the likeliest answer. max_tokens: of an answer. cut: whether an answer
        that is cut off there, or empty, counts as it is; otherwise it is an error.
    at_once: threads that ask. budget: tokens, read and written, that may be used in all, those of
        the record left out.
    extra: further fields of every request, such as {"seed": 0}.
    """

    def __init__(
        self,
        model: str,
        endpoint: Endpoint,
        *,
        record: Path | None = None,
        temperature: float = 0.0,
        max_tokens: int = 1024,
        at_once: int = 8,
        budget: int | None = None,
        cut: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.endpoint, self.record = model, endpoint, record
        self.settings = {"temperature": temperature, "max_tokens": max_tokens, **(extra or {})}
        self.at_once, self.budget, self.cut = at_once, budget, cut
        self.spent = 0
        self._lock = threading.Lock()
        self._answers = _recorded(record)

    def ask(
        self,
        prompt: Prompt,
        read: Read[T] = str,  # type: ignore[assignment]  # T is str where nothing is given
        *,
        schema: Mapping[str, Any] | None = None,
        sample: int = 0,
    ) -> T:
        """One answer, read by `read`; where it cannot be read, the judge hears why and tries again.

        schema: a JSON schema for endpoints that can be held to one; see also `json_in`.
        sample: a number that tells answers to the same question apart, where several are drawn.
        Raises BadSample for a question without a usable answer, UserError where nothing can be
        answered, or the budget is spent.
        """
        messages = chat(prompt)
        for _ in range(ATTEMPTS):
            text = self._text(messages, schema, sample)
            try:
                return read(text)
            except ValueError as error:
                problem = str(error)
                messages = [
                    *messages,
                    {"role": "assistant", "content": text},
                    {"role": "user", "content": f"That could not be used: {problem}. Try again."},
                ]
        raise BadSample(f"{ATTEMPTS} answers of {self.model} could not be used: {problem}")

    def ask_all(
        self,
        prompts: Sequence[Prompt],
        read: Read[T] = str,  # type: ignore[assignment]  # T is str where nothing is given
        *,
        schema: Mapping[str, Any] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[T | BadSample]:
        """Answers in order; in place of one that cannot be had, why. Equal questions are put once.

        progress: called with how many of the questions are answered and how many there are.
        Raises UserError as `ask` does; what was answered before is in the record.
        """
        distinct = list(dict.fromkeys(prompts))
        found: dict[Prompt, T | BadSample] = {}
        with ThreadPoolExecutor(self.at_once) as threads:
            waiting = {threads.submit(self.ask, p, read, schema=schema): p for p in distinct}
            try:
                for done in as_completed(waiting):
                    try:
                        found[waiting[done]] = done.result()
                    except BadSample as error:
                        found[waiting[done]] = error
                    if progress is not None:
                        progress(len(found), len(distinct))
            except BaseException:  # nothing more is asked, whatever it was
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return [found[prompt] for prompt in prompts]

    def _text(
        self, messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any] | None, sample: int
    ) -> str:
        """The answer to messages, from the record or the endpoint."""
        body: dict[str, Any] = {"model": self.model, "messages": messages, **self.settings}
        if schema is not None:
            held = {"name": "answer", "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": held}
        key = _key(body, sample)
        if key not in self._answers:
            if self.budget is not None and self.spent >= self.budget:
                raise UserError(
                    f"the budget of {self.budget} tokens is spent ({self.spent} were used)",
                    hint="what was answered is kept: with a larger budget, the command goes on",
                )
            began = time.time()
            answer = self.endpoint.post("/chat/completions", body)
            self._keep(key, sample, body, answer, began)
        return _content(self._answers[key], cut=self.cut)

    def _keep(
        self, key: str, sample: int, body: Mapping[str, Any], answer: dict[str, Any], began: float
    ) -> None:
        usage = answer.get("usage") or {}
        row = {
            "key": key,
            "sample": sample,
            "request": _without_images(body),
            "response": answer,
            "asked": round(began, 3),
            "seconds": round(time.time() - began, 3),
        }
        with self._lock:
            self.spent += int(usage.get("total_tokens") or 0)
            self._answers[key] = answer
            if self.record is not None:
                self.record.parent.mkdir(parents=True, exist_ok=True)
                with self.record.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")


def chat(prompt: Prompt) -> list[dict[str, Any]]:
    """A prompt as the endpoint takes it: messages, images as `data:` URIs.

    Raises BadSample for a video, and for an image that is not there.
    """
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": m.role, "content": [_part(part) for part in m.parts]} for m in prompt]


def json_in(text: str) -> Any:
    """The JSON object or list in a text that may say more around it. Raises ValueError."""
    fenced = re.search(r"```(?:json)?\s*(.*?)```", text, re.DOTALL)
    inner = fenced.group(1) if fenced else text
    for start in (found.start() for found in re.finditer(r"[{\[]", inner)):
        try:
            return json.JSONDecoder().raw_decode(inner, start)[0]
        except json.JSONDecodeError:
            continue
    raise ValueError("a JSON object or list is wanted, and there is none")


def _part(part: Part) -> dict[str, Any]:
    if not isinstance(part, Media):
        return {"type": "text", "text": part.text}
    if part.kind != "image":
        raise BadSample("a judge takes texts and images, and no videos")
    digest(part)  # raises BadSample for a file that is not there
    content = part.content
    mime = next((kind for head, kind in MIMES.items() if content.startswith(head)), None)
    if mime is None:  # a format that endpoints do not take
        mime, content = "image/png", png(open_image(part)).content
    data = base64.b64encode(content).decode()
    return {"type": "image_url", "image_url": {"url": f"data:{mime};base64,{data}"}}


MIMES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
}
"""How the files begin that endpoints take."""


def _content(answer: Mapping[str, Any], *, cut: bool) -> str:
    """The text of an answer. Raises BadSample where there is none, or only a part of it."""
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise BadSample(f"the judge's answer has no text: {str(answer)[:200]}") from error
    if choice.get("finish_reason") == "length" and not cut:
        raise BadSample("the judge's answer is longer than its tokens allow: allow it more")
    if cut and text is None and choice.get("finish_reason") in ("stop", "length"):
        text = ""
    if not isinstance(text, str) or not (text.strip() or cut):
        raise BadSample(f"the judge said nothing ({choice.get('finish_reason')})")
    return re.sub(r"^.*</think>", "", text, flags=re.DOTALL).strip()


def _key(body: Mapping[str, Any], sample: int) -> str:
    text = json.dumps([body, sample], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _without_images(value: Any) -> Any:
    """The same with every image's bytes replaced by their hash: images lie elsewhere."""
    match value:
        case str() if value.startswith("data:") and ";base64," in value:
            data = base64.b64decode(value.partition(",")[2])
            return f"sha256:{hashlib.sha256(data).hexdigest()}"
        case Mapping():
            return {name: _without_images(item) for name, item in value.items()}
        case list() | tuple():
            return [_without_images(item) for item in value]
    return value


def _recorded(record: Path | None) -> dict[str, dict[str, Any]]:
    """Earlier answers by key. A line that a killed process left unfinished is dropped."""
    if record is None or not record.exists():
        return {}
    *lines, rest = record.read_text(encoding="utf-8").split("\n")
    if rest:
        with whole_file(record) as partial:
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    rows = [json.loads(line) for line in lines]
    return {row["key"]: row["response"] for row in rows}
