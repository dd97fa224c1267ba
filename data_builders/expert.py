"""Who corrects answers for builders: a judge behind an endpoint, or a model on this machine."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mmalign.data.cache import Cache
from mmalign.data_builders.sampling import SampledModel, Sampling, cache_in, draw, load
from mmalign.errors import BadSample, UserError
from mmalign.records import Message, Text, text_of
from mmalign.rewards.judge import ATTEMPTS, Judge, JudgeOptions, Prompt, Read

T = TypeVar("T")

RECORD = "judge.jsonl"
"""In a builder's cache: every question to the judge, and its answer."""


class Expert(Protocol):
    """Answers questions, each read in its own way."""

    def ask(
        self, prompts: Sequence[Prompt], reads: Sequence[Read[T]], schema: Mapping[str, Any]
    ) -> list[T | BadSample]:
        """Answers in order; in place of one that cannot be had, why.

        reads: one for each prompt; it raises ValueError, saying what was wanted, for an answer that
        is of no use, and the expert hears that and tries again. schema: of the JSON wanted.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class OptionalJudge(JudgeOptions):
    __doc__ = JudgeOptions.__doc__

    judge: str = ""


@dataclass(frozen=True)
class DistantExpert:
    """A judge behind an endpoint."""

    judge: Judge

    def ask(
        self, prompts: Sequence[Prompt], reads: Sequence[Read[T]], schema: Mapping[str, Any]
    ) -> list[T | BadSample]:
        def one(prompt: Prompt, read: Read[T]) -> T | BadSample:
            try:
                return self.judge.ask(prompt, read, schema=schema)
            except BadSample as error:
                return error

        with ThreadPoolExecutor(self.judge.at_once) as threads:
            waiting = [threads.submit(one, *each) for each in zip(prompts, reads, strict=True)]
            try:
                return [each.result() for each in waiting]
            except BaseException:  # nothing more is asked, whatever it was
                threads.shutdown(wait=False, cancel_futures=True)
                raise


@dataclass(frozen=True)
class LocalExpert:
    """A vision-language model on this machine that is asked as a judge is."""

    model: SampledModel
    sampling: Sampling
    cache: Cache | None

    def ask(
        self, prompts: Sequence[Prompt], reads: Sequence[Read[T]], schema: Mapping[str, Any]
    ) -> list[T | BadSample]:
        found: list[T | BadSample] = [BadSample("not asked")] * len(prompts)
        asked = {place: _messages(prompt) for place, prompt in enumerate(prompts)}
        for _ in range(ATTEMPTS):
            answers = self._say(list(asked.values()))
            again = {}
            for (place, messages), answer in zip(asked.items(), answers, strict=True):
                try:
                    found[place] = reads[place](answer)
                except ValueError as error:
                    found[place] = BadSample(f"{ATTEMPTS} answers could not be used: {error}")
                    problem = f"That could not be used: {error}. Try again."
                    again[place] = (
                        *messages,
                        Message("assistant", (Text(answer),)),
                        Message("user", (Text(problem),)),
                    )
            asked = again
            if not asked:
                break
        return found

    def _say(self, prompts: Sequence[tuple[Message, ...]]) -> list[str]:
        name = f"{self.model.modality}/{self.model.precision}/{self.model.name}"
        loaded = functools.partial(load, self.model)
        seeds = [0] * len(prompts)
        drawn = draw(loaded, name, prompts, seeds, self.sampling, self.cache)
        return [text_of(sample.response) for sample in drawn]


@functools.lru_cache(maxsize=1)
def open_expert(judge: OptionalJudge, local: str | None, cache: Path | None) -> Expert:
    """The judge, or the model `local` in its place, opened once in this process.

    cache: folder for what was asked and answered. Raises UserError unless one of the two is given.
    """
    if bool(judge.judge) == (local is not None):
        raise UserError(
            "one expert is needed, behind an endpoint or on this machine",
            hint="give --judge NAME with --judge-url, or --local-expert FOLDER",
        )
    if local is None:
        return DistantExpert(judge.open((cache or Path()) / RECORD))
    tokens = Sampling(temperature=0.0, max_new_tokens=judge.judge_tokens)
    return LocalExpert(SampledModel(model=local, modality="vlm"), tokens, cache_in(cache))


def _messages(prompt: Prompt) -> tuple[Message, ...]:
    return (Message("user", (Text(prompt),)),) if isinstance(prompt, str) else prompt
