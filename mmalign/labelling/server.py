"""The local web server behind the labelling page: hands out comparisons and takes votes.

It listens on this machine only, and answers only those who know its token. What it hands out says
nothing about where a candidate came from, which one the dataset prefers, or what others voted.
"""

from __future__ import annotations

import hmac
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image, UnidentifiedImageError

from mmalign.labelling.comparisons import Comparison
from mmalign.labelling.votes import Vote, Votes, checked_ranking
from mmalign.records import Media, Message, Part, Text

HOST = "127.0.0.1"
LONGEST_BODY = 100_000
SHOWN_AS_THEY_ARE = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


class Desk:
    """What the server knows: the comparisons, the votes, and the media it has handed out."""

    def __init__(self, comparisons: Sequence[Comparison], votes: Votes, *, token: str) -> None:
        self.comparisons = list(comparisons)
        self.known = {comparison.id: comparison for comparison in comparisons}
        self.votes = votes
        self.token = token
        self._media: dict[str, Media] = {}

    def next(self, annotator: str) -> dict[str, Any]:
        """The first comparison that an annotator has not answered; "id" is None after the last."""
        answered = self.votes.answered(annotator)
        count = {
            "done": sum(comparison.id in answered for comparison in self.comparisons),
            "total": len(self.comparisons),
        }
        left = (c for c in self.comparisons if c.id not in answered)
        found = next(left, None)
        return {"id": None, **count} if found is None else {**self.show(found, annotator), **count}

    def show(self, comparison: Comparison, annotator: str) -> dict[str, Any]:
        """A comparison as the page takes it, its candidates in the annotator's order."""
        first, *others = comparison.candidates
        shared = all(sample.prompt == first.prompt for sample in others)
        candidates = [
            {
                "prompt": [] if shared else self._turns(sample.prompt),
                "response": self._parts(sample.response),
            }
            for sample in (comparison.candidates[i] for i in comparison.order(annotator))
        ]
        prompt = self._turns(first.prompt) if shared else []
        return {"id": comparison.id, "prompt": prompt, "candidates": candidates}

    def take(self, sent: dict[str, Any]) -> None:
        """Keep a vote that the page sent. Raises ValueError for one that makes no sense.

        Its ranking speaks of places on the page; what is kept speaks of the candidates.
        """
        name = annotator_of(str(sent.get("annotator", "")))
        comparison = self.known.get(str(sent.get("comparison")))
        if comparison is None:
            raise ValueError("the vote is about a comparison that is not in this dataset")
        vote_id, seconds = sent.get("vote"), sent.get("seconds", 0.0)
        if not isinstance(vote_id, str) or not 8 <= len(vote_id) <= 64:
            raise ValueError("a vote needs an id of its own")
        if not isinstance(seconds, int | float) or not 0 <= seconds < 1e7:
            raise ValueError("seconds must be a number, not negative")
        ranking = None
        if sent.get("ranking") is not None:
            order = comparison.order(name)
            shown = checked_ranking(sent["ranking"], len(order))
            ranking = tuple(tuple(sorted(order[place] for place in group)) for group in shown)
        self.votes.add(Vote(vote_id, comparison.id, name, ranking, float(seconds)))

    def media(self, digest: str) -> tuple[str, bytes] | None:
        """Type and bytes of a medium that was handed out, in a form that browsers show."""
        found = self._media.get(digest)
        if found is None:
            return None
        return ("video/mp4", found.content) if found.kind == "video" else shown_image(found.content)

    def _turns(self, messages: tuple[Message, ...]) -> list[dict[str, Any]]:
        return [{"role": m.role, "parts": self._parts(m.parts)} for m in messages]

    def _parts(self, parts: tuple[Part, ...]) -> list[dict[str, str]]:
        return [{"text": p.text} if isinstance(p, Text) else self._handed_out(p) for p in parts]

    def _handed_out(self, media: Media) -> dict[str, str]:
        self._media[media.digest] = media
        return {media.kind: f"media/{media.digest}"}


def annotator_of(name: str) -> str:
    """A name as it is stored. Raises ValueError for an empty or very long one."""
    name = " ".join(name.split())
    if not 1 <= len(name) <= 80:
        raise ValueError("an annotator needs a name of 1 to 80 characters")
    return name


def shown_image(content: bytes) -> tuple[str, bytes]:
    """Type and bytes of an image for browsers: as it is, or as PNG where few would show it."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            kind = SHOWN_AS_THEY_ARE.get(image.format or "")
            if kind is not None and image.mode != "CMYK":
                return kind, content
            converted = io.BytesIO()
            image.convert("RGBA" if "A" in image.getbands() else "RGB").save(converted, "PNG")
            return "image/png", converted.getvalue()
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return "application/octet-stream", content  # the page says that it cannot be shown


def serve(desk: Desk, *, port: int = 0) -> ThreadingHTTPServer:
    """A server on this machine, listening already; `serve_forever` makes it answer.

    port: 0 takes a free one. Raises OSError when it is taken.
    """
    return ThreadingHTTPServer((HOST, port), partial(_Handler, desk))


def address(server: ThreadingHTTPServer, desk: Desk) -> str:
    """What to open in a browser."""
    return f"http://{HOST}:{server.server_address[1]}/?token={desk.token}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, desk: Desk, *args: Any) -> None:
        self.desk = desk
        super().__init__(*args)

    def do_GET(self) -> None:  # the name that the base class calls
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Silent: the terminal belongs to the command."""

    def _answer(self, handle: Callable[[], None]) -> None:
        try:
            if self._allowed():
                handle()
            else:
                self._send(HTTPStatus.FORBIDDEN, "text/plain", b"open the address that was printed")
        except ValueError as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except OSError as error:
            self._json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)})

    def _allowed(self) -> bool:
        """Whether the request names this machine and the token.

        The host is looked at because a page elsewhere may have its name resolve to this machine.
        """
        port = self.server.server_address[1]  # type: ignore[index]  # it is (host, port)
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            return False
        given = self.headers.get("X-Token") or self._query("token")
        return hmac.compare_digest(given.encode(), self.desk.token.encode())

    def _get(self) -> None:
        path = urlsplit(self.path).path
        if path == "/":
            page = files("mmalign.labelling").joinpath("page.html").read_bytes()
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", page)
        elif path == "/next":
            self._json(HTTPStatus.OK, self.desk.next(annotator_of(self._query("annotator"))))
        elif path.startswith("/comparison/"):
            comparison = self.desk.known.get(path.removeprefix("/comparison/"))
            if comparison is None:
                self._json(HTTPStatus.NOT_FOUND, {"error": "there is no such comparison"})
                return
            name = annotator_of(self._query("annotator"))
            self._json(HTTPStatus.OK, self.desk.show(comparison, name))
        elif path.startswith("/media/") and (found := self.desk.media(path.split("/")[2])):
            self._send(HTTPStatus.OK, *found)
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not here")

    def _post(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if urlsplit(self.path).path != "/vote" or self.headers.get("X-Token") is None:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not here")
            return
        if length > LONGEST_BODY:
            raise ValueError("the vote is too long")
        sent = json.loads(self.rfile.read(length))
        if not isinstance(sent, dict):
            raise ValueError("a vote is an object")
        self.desk.take(sent)
        self._json(HTTPStatus.OK, {"kept": sent["vote"]})

    def _query(self, name: str) -> str:
        return parse_qs(urlsplit(self.path).query).get(name, [""])[0]

    def _json(self, status: HTTPStatus, value: Any) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header(
            "Content-Security-Policy",
            "default-src 'none'; img-src 'self'; media-src 'self'; connect-src 'self'; "
            "style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'none'",
        )
        self.end_headers()
        self.wfile.write(body)
