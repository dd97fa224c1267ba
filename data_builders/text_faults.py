"""Planting a false statement into a true text: another colour, count, place or object, or one more.

Each fault changes as little as it can and says which characters it changed, so that training can
weigh them. Words are found by a small lexicon of English; whoever describes other things gives
another one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

Change = tuple[int, int, str]
"""Characters `start` to `end` of the text, and what stands there instead."""


@dataclass(frozen=True)
class Lexicon:
    """Words that can stand for one another.

    attributes: sets of words that exclude each other: colours, sizes, materials ...
    relations: pairs of phrases that mean the opposite. objects: singular nouns, with their plural
    where it is not made by adding s.
    """

    attributes: Sequence[Sequence[str]]
    relations: Sequence[tuple[str, str]]
    objects: Mapping[str, str]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _plurals(text: str) -> dict[str, str]:
    """Nouns with their plurals; "bus:buses" where it is not made by adding s."""
    entries = (word.partition(":") for word in text.split())
    return {name: plural or f"{name}s" for name, _, plural in entries}


ENGLISH = Lexicon(
    attributes=(
        _words("red orange yellow green blue purple pink brown black white gray golden silver"),
        _words("large small"),
        _words("big little"),
        _words("tall short"),
        _words("wooden metal plastic glass stone leather"),
        _words("round square triangular"),
        _words("striped spotted plain"),
        _words("open closed"),
        _words("empty full"),
        _words("wet dry"),
        _words("young old"),
    ),
    relations=(
        ("to the left of", "to the right of"),
        ("on the left", "on the right"),
        ("left", "right"),
        ("above", "below"),
        ("on top of", "underneath"),
        ("in front of", "behind"),
        ("inside", "outside"),
        ("near", "far from"),
        ("facing", "facing away from"),
        ("holding", "putting down"),
        ("standing", "sitting"),
        ("entering", "leaving"),
    ),
    objects=_plurals(
        """
        dog cat horse cow bird sheep:sheep bicycle car bus:buses truck train boat bench:benches
        chair couch:couches table bed lamp clock vase book cup bottle bowl fork knife:knives spoon
        plate apple banana orange cake pizza sandwich:sandwiches umbrella backpack handbag suitcase
        hat tie ball kite skateboard surfboard laptop keyboard phone television refrigerator oven
        sink person:people child:children tree flower fence sign
        """
    ),
)

NUMBERS = _words("one two three four five six seven eight nine ten")


@dataclass(frozen=True)
class Fault:
    """The text with its fault, the kind of fault, and the changed characters in both texts."""

    text: str
    kind: str
    before: tuple[int, int]
    after: tuple[int, int]


def attribute(text: str, lexicon: Lexicon, random: Random) -> list[Change]:
    """A colour, size or material is another one of its set."""
    return [
        (at.start(), at.end(), _like(at[0], random.choice([w for w in group if w != word])))
        for group in lexicon.attributes
        for word in group
        for at in _places(word, text)
        # "orange" and others are things as well: where one follows a or the, and no noun follows
        if not (word in lexicon.objects and _is_noun(text, at))
    ]


def count(text: str, lexicon: Lexicon, random: Random) -> list[Change]:
    """A number is one more or one less; a noun beside it follows in number where it is known."""
    changes: list[Change] = []
    for at in re.finditer(rf"\b({'|'.join(NUMBERS)}|\d{{1,3}})\b", text, re.IGNORECASE):
        spelled = at[0].lower() in NUMBERS
        value = NUMBERS.index(at[0].lower()) + 1 if spelled else int(at[0])
        other = value + random.choice([-1, 1] if value > 2 else [1])
        if spelled and other > len(NUMBERS):
            other = value - 1
        word = NUMBERS[other - 1] if spelled else str(other)
        changes.append((at.start(), at.end(), _like(at[0], word)))
    return [_in_number(text, change, lexicon) for change in changes]


def relation(text: str, lexicon: Lexicon, random: Random) -> list[Change]:
    """Left becomes right, above becomes below."""
    swaps: dict[str, str] = {}
    for first, second in lexicon.relations:
        swaps |= {first: second, second: first}
    longest_first = sorted(swaps, key=len, reverse=True)
    found: list[Change] = []
    taken: set[int] = set()
    for phrase in longest_first:
        for at in _places(phrase, text):
            if taken.isdisjoint(range(at.start(), at.end())):
                found.append((at.start(), at.end(), _like(at[0], swaps[phrase])))
            taken |= set(range(at.start(), at.end()))
    return sorted(found)


def swap(text: str, lexicon: Lexicon, random: Random) -> list[Change]:
    """An object is another one, which the text does not speak of."""
    absent = _absent(text, lexicon)
    changes: list[Change] = []
    for name, plural in lexicon.objects.items() if absent else ():
        for form, place in ((name, 0), (plural, 1)) if plural != name else ((name, 0),):
            for at in _places(form, text):
                other = random.choice(absent)
                word = _like(at[0], (other, lexicon.objects[other])[place])
                changes.append(_with_article(text, (at.start(), at.end(), word)))
    return sorted(changes)


def plant(text: str, lexicon: Lexicon, random: Random) -> list[Change]:
    """A sentence more, about an object that the text does not speak of."""
    absent = _absent(text, lexicon)
    if not absent or not text.strip():
        return []
    other = random.choice(absent)
    sentence = random.choice(
        (
            "There is also {a} {thing} in the background.",
            "Next to it, there is {a} {thing}.",
            "In the distance, {a} {thing} can be seen.",
        )
    )
    end = len(text.rstrip())
    stop = "" if text.rstrip()[-1] in ".!?" else "."
    return [(end, end, f"{stop} " + sentence.format(a=_article(other), thing=other))]


KINDS: dict[str, Callable[[str, Lexicon, Random], list[Change]]] = {
    "attribute": attribute,
    "count": count,
    "relation": relation,
    "swap": swap,
    "plant": plant,
}
"""By name, all the places where a text can have such a fault."""


def faulty(
    text: str, random: Random, *, kinds: Sequence[str] = tuple(KINDS), lexicon: Lexicon = ENGLISH
) -> Fault | None:
    """The text with one fault, of one of `kinds` at random; None where none finds a place."""
    for kind in random.sample(list(kinds), len(kinds)):
        changes = KINDS[kind](text, lexicon, random)
        if changes:
            start, end, instead = random.choice(changes)
            changed = text[:start] + instead + text[end:]
            return Fault(changed, kind, (start, end), (start, start + len(instead)))
    return None


def _places(phrase: str, text: str) -> list[re.Match[str]]:
    return list(re.finditer(rf"\b{re.escape(phrase)}\b", text, re.IGNORECASE))


def _absent(text: str, lexicon: Lexicon) -> list[str]:
    return [
        name
        for name, plural in lexicon.objects.items()
        if not _places(name, text) and not _places(plural, text)
    ]


def _is_noun(text: str, at: re.Match[str]) -> bool:
    article = re.search(r"\b(an?|the)\s+$", text[: at.start()], re.IGNORECASE)
    return article is not None and not re.match(r"\s+\w", text[at.end() :])


def _like(pattern: str, word: str) -> str:
    return word[:1].upper() + word[1:] if pattern[:1].isupper() else word


def _article(noun: str) -> str:
    return "an" if noun[0].lower() in "aeiou" else "a"


def _with_article(text: str, change: Change) -> Change:
    """The change with the article before it, where "a" has to become "an" or the reverse."""
    start, end, word = change
    before = re.search(r"\b(an?)(\s+)$", text[:start], re.IGNORECASE)
    if before is None or before[1].lower() == _article(word):
        return change
    return before.start(), end, _like(before[1], _article(word)) + before[2] + word


def _in_number(text: str, change: Change, lexicon: Lexicon) -> Change:
    """The change of a number with the noun behind it, if that is known and has to follow."""
    start, end, word = change
    behind = re.match(r"(\s+)(\w+)", text[end:])
    if behind is None:
        return change
    one = word.lower() in ("one", "1")
    for name, plural in lexicon.objects.items():
        if behind[2].lower() in (name, plural):
            noun = _like(behind[2], name if one else plural)
            return start, end + len(behind[0]), word + behind[1] + noun
    return change
