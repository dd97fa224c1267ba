"""Requests to an OpenAI-compatible endpoint: again where that helps, and not too many at a time.

What a request means, and what was answered before, is the judge's matter.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmalign.errors import BadSample, UserError

LATER = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""Statuses after which the same request may succeed."""

REFUSED = {400, 413, 422}
"""Statuses that speak of one request: it is too long, say, or has an image of the wrong kind."""

HINTS = {
    401: "is the key right?",
    403: "is the key right, and may it use this model?",
    404: "is the URL right (it mostly ends with /v1), and the model's name?",
}

LONGEST_PAUSE = 60.0


class _Later(Exception):
    """A try that failed; another may not. seconds: how long the endpoint asks to wait."""

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason)
        self.seconds = seconds


@dataclass
class Endpoint:
    """An API at `url`, such as http://localhost:8000/v1, used from several threads.

    key: of the API, or none. timeout: seconds for one try. tries: before giving up. per_minute:
    requests at most, those tried again included. pause: seconds before the second try, doubled each
    time. sleep: how time is spent, for tests.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    tries: int = 6
    per_minute: float | None = None
    pause: float = 1.0
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UserError(
                f"{self.url!r} is no address of an endpoint",
                hint="such as http://localhost:8000/v1",
            )
        self._lock = threading.Lock()
        self._next = 0.0

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON answer. Raises BadSample where this request is refused, UserError where none
        can succeed or the endpoint stays away."""
        pause, reason = self.pause, ""
        for number in range(self.tries):
            self._wait_for_turn()
            try:
                return self._once(path, body)
            except _Later as failed:
                reason = str(failed)
                if number + 1 < self.tries:
                    asked = failed.seconds
                    self.sleep(pause * random.uniform(0.75, 1.25) if asked is None else asked)
                    pause = min(LONGEST_PAUSE, 2 * pause)
        raise UserError(
            f"{self.url} did not answer in {self.tries} tries: {reason}",
            hint="what was answered is kept: the same command, run again, goes on from there",
        )

    def _once(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(
            self.url.rstrip("/") + path, json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise self._meaning(error) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            # Not there yet, gone, too slow, or cut off in the middle.
            raise _Later(str(error) or type(error).__name__) from error
        if not isinstance(answer, dict):
            raise _Later(f"the answer is no JSON object: {str(answer)[:100]}")
        return answer

    def _meaning(self, error: urllib.error.HTTPError) -> Exception:
        """What follows from a status."""
        said = f"{error.code} {_message(error)}"
        if error.code in LATER:
            return _Later(said, _seconds(error.headers.get("Retry-After")))
        if error.code in REFUSED:
            return BadSample(f"{self.url} refused the request: {said}")
        return UserError(f"{self.url} answered {said}", hint=HINTS.get(error.code, ""))

    def _wait_for_turn(self) -> None:
        """Requests of all threads together come evenly."""
        if self.per_minute is None:
            return
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + 60 / self.per_minute
        if turn > now:
            self.sleep(turn - now)


def _message(error: urllib.error.HTTPError) -> str:
    """What the endpoint says went wrong, in a line."""
    text = error.read().decode(errors="replace")
    try:
        found = json.loads(text)
        inner = found.get("error", found.get("detail", text))
        text = str(inner.get("message", inner) if isinstance(inner, dict) else inner)
    except (ValueError, AttributeError):
        pass  # then it is no JSON object, and is shown as it is
    return " ".join(text.split())[:300]


def _seconds(header: str | None) -> float | None:
    """Of a Retry-After header; one with a date is as good as none."""
    try:
        return min(LONGEST_PAUSE, max(0.0, float(header or "")))
    except ValueError:
        return None
