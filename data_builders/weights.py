"""Numbers by name, as they are typed: grid=2 sequence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random

from mmalign.errors import UserError


def weights(option: str, given: Sequence[str], known: Sequence[str]) -> dict[str, float]:
    """name or name=number of each; a name alone has the number 1.

    Raises UserError for names that are not known, and for numbers below 0.
    """
    found: dict[str, float] = {}
    for each in given:
        name, _, number = each.partition("=")
        try:
            found[name] = float(number or 1)
        except ValueError:
            found[name] = math.nan
        if name not in known or not 0 <= found[name] < math.inf:
            raise UserError(
                f"{option}: {each!r} cannot be used",
                hint=f"give names out of {', '.join(known)}, each with a number that is 0 or more, "
                f"as in {known[0]}=0.5",
            )
    return found


def shares(option: str, given: Sequence[str], known: Sequence[str]) -> dict[str, float]:
    """The same for what is drawn from. Raises UserError as well where all weights are 0."""
    found = weights(option, given, known)
    if not sum(found.values()):
        raise UserError(f"{option}: there is nothing to draw from")
    return found


def drawn(shares: Mapping[str, float], random: Random) -> str:
    """A name, with a probability in proportion to its weight."""
    return random.choices(list(shares), list(shares.values()))[0]
