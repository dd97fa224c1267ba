"""An OpenAI-compatible endpoint on this machine that answers as a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = str | int | Mapping[str, Any]
"""A text, a status, or {"status", "headers", "body"}."""


class Script:
    """What the endpoint was asked, and where it is.

    reply: given the body of a request and its number, from 0, says what is answered.
    """

    def __init__(self, reply: Callable[[dict[str, Any], int], Reply]) -> None:
        self.reply = reply
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()

    @property
    def questions(self) -> list[str]:
        """The last message of every request."""
        return [body["messages"][-1]["content"] for body in self.bodies]


def completion(text: str | None, finish_reason: str = "stop") -> dict[str, Any]:
    """The body of a good answer."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "1",
        "object": "chat.completion",
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }


@contextmanager
def endpoint(reply: Callable[[dict[str, Any], int], Reply]) -> Iterator[Script]:
    """The endpoint, while the block runs."""
    script = Script(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the library's name
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with script.lock:
                number = len(script.bodies)
                script.bodies.append(body)
                script.headers.append(dict(self.headers))
            answer = script.reply(body, number)
            given: Mapping[str, Any] = {}
            if isinstance(answer, str):
                given = {"body": completion(answer)}
            elif isinstance(answer, int):
                given = {"status": answer, "body": {"error": {"message": f"status {answer}"}}}
            else:
                given = answer
            content = given.get("raw") or json.dumps(given.get("body", {})).encode()
            self.send_response(given.get("status", 200))
            for name, value in given.get("headers", {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(given.get("length", len(content))))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
