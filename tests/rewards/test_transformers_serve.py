"""The judge and `transformers serve`, a real endpoint, on a tiny model."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_models import save_model

from mmalign.rewards.endpoint import Endpoint
from mmalign.rewards.judge import Judge

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(find_spec(name) for name in ("fastapi", "uvicorn", "openai")),
        reason="needs what `pip install 'transformers[serving]'` brings",
    ),
]


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Model and URL of a running server."""
    folder = save_model(tmp_path / "model", "llama")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            stdout=log,
            stderr=log,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    try:
        for _ in range(120):
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.5)
        yield str(folder), f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def test_a_real_endpoint_answers(serving: tuple[str, str], tmp_path: Path) -> None:
    model, url = serving
    record = tmp_path / "judge.jsonl"
    judge = Judge(model, Endpoint(url), record=record, max_tokens=8, cut=True)
    answers = judge.ask_all(["Name a colour.", "What is the capital of France?"])
    assert all(isinstance(answer, str) and answer for answer in answers)
    assert judge.spent > 16
    again = Judge(model, Endpoint(url), record=record, max_tokens=8, cut=True)
    assert again.ask_all(["Name a colour."]) == answers[:1]
    assert again.spent == 0
