"""Instructions that a program can check: small functions of an answer, a table of them, and `Rule`.

Each function returns 1.0 exactly when the answer obeys and less, down to 0.0, the further it is
away, so that grades also rank answers that fail. `Rule` adds the sanity condition: no empty, copied
or repetitive text passes for an obedient one.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.errors import UserError
from mmalign.records import Sample, text_of

COMMON_WORDS = {
    "English": "the a an is are was of to in and that it for with on as they you this can have",
    "French": "le la les un une des est sont de du et que qui en dans pour avec sur elle ne pas",
    "German": "der die das ein eine ist sind von und dass es für mit auf zu den dem nicht sich",
    "Italian": "il la le gli un una è sono di del e che in per con si non da come della",
    "Spanish": "el la los las un una es son de del y que en para con por se su como más",
}


def words(text: str) -> list[str]:
    """The words and numbers of a text in lower case; "it's" and "well-known" are one word each."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())


def sentences(text: str) -> list[str]:
    """Pieces that hold a letter and end in `.`, `!`, `?` or with the text; "e.g. so" is cut too."""
    pieces = re.split(r"(?<=[.!?])[\"'”’)\]]*\s+", text.strip())
    return [piece for piece in pieces if re.search(r"[^\W\d_]", piece)]


def word_count(answer: str, *, least: int = 0, most: int | None = None) -> float:
    """From `least` to `most` words; otherwise the ratio of the count and the limit it breaks."""
    count = len(words(answer))
    if count < least:
        return count / least
    return 1.0 if most is None or count <= most else most / count


def sentence_count(answer: str, *, count: int) -> float:
    """Exactly `count` sentences; otherwise 1 / (1 + how many too many or too few)."""
    return _closeness(len(sentences(answer)), count)


def numbered_list(answer: str, *, count: int) -> float:
    """Nothing but `count` lines that begin 1., 2., and so on.

    Otherwise 1 / (1 + lines too many or too few), times the share of lines in this form.
    """
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    in_order = sum(
        bool(re.match(rf"{number}\.\s+\S", line)) for number, line in enumerate(lines, start=1)
    )
    return _closeness(in_order, count) * in_order / max(1, len(lines))


def lower_case(answer: str) -> float:
    """No capital letter; otherwise the share of letters that are not capitals."""
    return 1.0 - _share_of_letters(answer, str.isupper)


def upper_case(answer: str) -> float:
    """No small letter; otherwise the share of letters that are not small."""
    return 1.0 - _share_of_letters(answer, str.islower)


def includes(answer: str, *, word: str) -> float:
    """`word` occurs as a whole word, in any case. 0 or 1."""
    return float(word.lower() in words(answer))


def only(answer: str, *, allowed: Sequence[str]) -> float:
    """Nothing but words out of `allowed`, none of them twice; otherwise the share that is so."""
    said = words(answer)
    return len({word for word in said if word in allowed}) / max(1, len(said))


def excludes(answer: str, *, word: str) -> float:
    """`word` does not occur, in any case; otherwise 1 / (1 + occurrences)."""
    return 1 / (1 + words(answer).count(word.lower()))


def without(answer: str, *, characters: str) -> float:
    """None of the `characters`; otherwise 1 / (1 + occurrences)."""
    return 1 / (1 + sum(answer.count(character) for character in characters))


def starts_with(answer: str, *, phrase: str) -> float:
    """`phrase` comes first, in any case; 0.5 if it only occurs."""
    return _at_border(answer.strip().lower().startswith, answer, phrase)


def ends_with(answer: str, *, phrase: str) -> float:
    """`phrase` comes last, in any case; 0.5 if it only occurs."""
    return _at_border(answer.strip().lower().endswith, answer, phrase)


def numbers(answer: str, *, count: int = 1) -> float:
    """At least `count` numbers in digits, list numbers aside; otherwise the share that is there."""
    text = re.sub(r"(?m)^\s*\d+[.)]", "", answer)
    return min(1.0, len(re.findall(r"\d+(?:[.,]\d+)*", text)) / count)


def mentions(answer: str, *, topic: str) -> float:
    """The word `topic` occurs, in singular or plural, so the answer speaks of it. 0 or 1."""
    return float(_singular(topic.lower()) in map(_singular, words(answer)))


def language(answer: str, *, name: str) -> float:
    """The commonest words are those of language `name`; otherwise half their share."""
    said = words(answer)
    common = {
        key: sum(word in value.split() for word in said) for key, value in COMMON_WORDS.items()
    }
    if name not in common:
        raise UserError(f"no rule for language {name!r}", hint=f"there are: {', '.join(common)}")
    others = max(found for key, found in common.items() if key != name)
    return 1.0 if common[name] > others else 0.5 * common[name] / max(1, sum(common.values()))


RULES: dict[str, Callable[..., float]] = {
    "ends_with": ends_with,
    "excludes": excludes,
    "includes": includes,
    "language": language,
    "lower_case": lower_case,
    "mentions": mentions,
    "numbered_list": numbered_list,
    "numbers": numbers,
    "only": only,
    "sentence_count": sentence_count,
    "starts_with": starts_with,
    "upper_case": upper_case,
    "without": without,
    "word_count": word_count,
}


def sane(answer: str, prompt: str = "", *, least_words: int = 4) -> bool:
    """Whether a text is an answer at all: long enough, not a copy of the prompt, not repetitive.

    A copy shares more than half of its runs of four words with the prompt; a repetitive answer
    repeats more than a fifth of its own, or more than three fifths of its words.
    """
    said = words(answer)
    if not said or len(said) < least_words:
        return False
    runs, asked = _runs_of_four(said), set(_runs_of_four(words(prompt)))
    copied = sum(run in asked for run in runs) > 0.5 * len(runs)
    return not copied and len(set(runs)) >= 0.8 * len(runs) and len(set(said)) >= 0.4 * len(said)


@dataclass(frozen=True)
class Rule:
    """A rule by name with its parameters: plain data, `Rule(**json.loads(...))` brings it back."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    least_words: int = 4

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise UserError(f"no rule {self.name!r}", hint=f"there are: {', '.join(RULES)}")
        try:
            inspect.signature(RULES[self.name]).bind("", **self.parameters)
        except TypeError as error:
            wanted = ", ".join(list(inspect.signature(RULES[self.name]).parameters)[1:])
            raise UserError(f"rule {self.name!r}: {error}", hint=f"it takes: {wanted}") from None

    def score(self, answer: str, prompt: str = "") -> float:
        """From 0 to 1; 1.0 exactly when obeyed, 0.0 for what is no answer (see `sane`)."""
        if not sane(answer, prompt, least_words=self.least_words):
            return 0.0
        return RULES[self.name](answer, **self.parameters)

    def satisfied(self, answer: str, prompt: str = "") -> bool:
        """Whether the score is 1.0."""
        return self.score(answer, prompt) == 1.0


@dataclass(frozen=True)
class RuleReward:
    """How well the responses obey a rule."""

    rule: Rule

    @property
    def name(self) -> str:
        return f"rule:{self.rule}"

    def __call__(self, samples: Sequence[Sample]) -> NDArray[np.float64]:
        """(n,) From 0 to 1."""
        return np.array(
            [
                self.rule.score(
                    text_of(sample.response),
                    "\n".join(text_of(message.parts) for message in sample.prompt),
                )
                for sample in samples
            ]
        )


def rule(*, name: str, least_words: int = 4, **parameters: Any) -> RuleReward:
    """A rule by its name in RULES, with its parameters."""
    return RuleReward(Rule(name, parameters, least_words))


def _closeness(found: int, wanted: int) -> float:
    return 1 / (1 + abs(found - wanted))


def _share_of_letters(answer: str, kind: Callable[[str], bool]) -> float:
    letters = [character for character in answer if character.isalpha()]
    return sum(map(kind, letters)) / max(1, len(letters))


def _at_border(found: Callable[[str], bool], answer: str, phrase: str) -> float:
    if found(phrase.lower()):
        return 1.0
    return 0.5 if phrase.lower() in answer.lower() else 0.0


def _singular(word: str) -> str:
    return re.sub(r"(?:['’]s|s['’]?)$", "", word)


def _runs_of_four(tokens: list[str]) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]
