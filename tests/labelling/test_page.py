"""The labelling page in a real browser, and what its server refuses."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from PIL import Image

from mmalign.data.store import write_store
from mmalign.labelling.comparisons import Comparison, comparisons_of
from mmalign.labelling.server import HOST, Desk, serve
from mmalign.labelling.votes import Votes
from mmalign.records import Media, Message, Preference, Sample, Text, pair

TOKEN = "secret-of-the-test"


def image(colour: str) -> Media:
    encoded = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(encoded, "PNG")
    return Media("image", encoded.getvalue())


def pairs() -> list[Preference]:
    asked = (Message("user", (image("navy"), Text("What colour is it?"))),)
    answers = [Sample(asked, (Text(f"{word} {i}"),)) for i in range(3) for word in ("blue", "red")]
    texts = [pair(answers[i], answers[i + 1]) for i in (0, 2, 4)]
    draw = (Message("user", (Text("Draw <b>green</b>."),)),)
    drawn = [Sample(draw, (image(colour),)) for colour in ("green", "olive", "black")]
    return [*texts, Preference(tuple(drawn), (2.0, 1.0, 0.0))]


@contextmanager
def served(folder: Path) -> Iterator[tuple[Desk, int]]:
    comparisons, _ = comparisons_of(enumerate(pairs()))
    desk = Desk(comparisons, Votes(folder / "votes.sqlite"), token=TOKEN)
    server = serve(desk)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield desk, server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    sent = None if body is None else json.dumps(body)
    connection.request(method, path, sent, {"X-Token": TOKEN, **headers})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_only_those_who_know_the_token_get_in(tmp_path: Path) -> None:
    with served(tmp_path) as (_, port):
        assert ask(port, "GET", "/next?annotator=a")[0] == 200
        assert ask(port, "GET", "/next?annotator=a", **{"X-Token": "wrong"})[0] == 403
        assert ask(port, "GET", f"/?token={TOKEN}", **{"X-Token": ""})[0] == 200
        assert ask(port, "GET", "/", **{"X-Token": ""})[0] == 403
        # A page of another host whose name was pointed at this machine.
        assert ask(port, "GET", "/next?annotator=a", Host=f"evil.example:{port}")[0] == 403


def test_what_is_handed_out_is_blind(tmp_path: Path) -> None:
    with served(tmp_path) as (_, port):
        shown = json.loads(ask(port, "GET", "/next?annotator=a")[1])
    assert set(shown) == {"id", "prompt", "candidates", "done", "total"}
    assert all(set(candidate) == {"prompt", "response"} for candidate in shown["candidates"])


def test_votes_that_make_no_sense_are_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    with served(tmp_path) as (desk, port):
        about = desk.comparisons[0].id
        good = {"vote": "0123456789", "comparison": about, "annotator": "a", "ranking": [[0], [1]]}
        wrong = [
            {"ranking": [[0]]},
            {"comparison": "unknown"},
            {"annotator": " "},
            {"vote": ""},
            {"seconds": "long"},
        ]
        for change in wrong:
            status, answer = ask(port, "POST", "/vote", {**good, **change})
            assert status == 400
            assert json.loads(answer)["error"]
        assert ask(port, "POST", "/vote", [1])[0] == 400
        assert desk.votes.counting() == []
        assert ask(port, "POST", "/vote", good)[0] == 200
        assert len(desk.votes.counting()) == 1


def test_images_that_browsers_do_not_show_come_as_png(tmp_path: Path) -> None:
    tiff = io.BytesIO()
    Image.new("CMYK", (8, 8)).save(tiff, "TIFF")
    prompt = (Message("user", (Media("image", tiff.getvalue()),)),)
    made = pair(Sample(prompt, (Text("a"),)), Sample(prompt, (Text("b"),)))
    comparisons, _ = comparisons_of([(0, made)])
    desk = Desk(comparisons, Votes(tmp_path / "votes.sqlite"), token=TOKEN)
    shown = desk.next("a")["prompt"][0]["parts"][0]["image"]
    found = desk.media(shown.removeprefix("media/"))
    assert found is not None
    assert found[0] == "image/png"
    assert Image.open(io.BytesIO(found[1])).size == (8, 8)


class Page:
    """The page in a browser, as an annotator uses it."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def wait(self, condition: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 20).until(lambda b: b.execute_script(f"return {condition}"))

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.by import By

        for key in keys:
            self.browser.find_element(By.TAG_NAME, "body").send_keys(key)

    def done(self, count: int) -> None:
        self.wait(f"!busy && document.getElementById('bar').value === {count}")

    @property
    def texts(self) -> list[str]:
        script = "return [...document.querySelectorAll('.candidate')].map(c => c.innerText)"
        found: list[str] = self.browser.execute_script(script)
        return found


@pytest.mark.slow
def test_an_annotator_votes_by_keyboard(tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    with served(tmp_path) as (desk, port), chromium(tmp_path / "profile") as browser:
        page = Page(browser)
        browser.get(f"http://{HOST}:{port}/?token={TOKEN}")
        browser.find_element(By.ID, "name").send_keys("ann\n")
        page.done(0)
        page.wait("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        first = page.texts
        page.press("1")
        page.done(1)
        browser.refresh()  # the name and all votes are still there
        page.done(1)
        page.press("t")
        page.done(2)
        page.press("b")
        page.wait("!document.getElementById('finished').offsetParent && current && !busy")
        page.press("2")
        page.done(2)
        page.press("s")
        page.done(3)
        assert (
            browser.execute_script("return document.querySelectorAll('#candidates img').length")
            == 3
        )
        assert "Draw <b>green</b>." in browser.find_element(By.ID, "prompt").text
        browser.save_screenshot(str(tmp_path / "page.png"))
        page.press("3", "1")  # the last place follows
        page.done(4)
        assert browser.find_element(By.ID, "finished").is_displayed()
        votes = {vote.comparison: vote for vote in desk.votes.counting()}
    assert len(votes) == 4
    asked: list[Comparison] = desk.comparisons
    best = votes[asked[0].id].ranking
    assert best is not None
    chosen = asked[0].candidates[best[0][0]].response[0]
    assert isinstance(chosen, Text)
    assert chosen.text in first[0]
    assert votes[asked[1].id].ranking is not None  # the tie was replaced
    assert len(votes[asked[1].id].ranking or ()) == 2
    assert votes[asked[2].id].ranking is None
    order = asked[3].order("ann")
    assert votes[asked[3].id].ranking == ((order[2],), (order[0],), (order[1],))


def command(data: Path, out: Path) -> tuple[subprocess.Popen[str], str]:
    """`mmalign label` and the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mmalign", "label", str(data), "--out", str(out), "--no-browser"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # whoever started the tests may have switched interrupts off for all that they start
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://\S+", line):
            return process, found[0]
    raise AssertionError("the command printed no address")


@pytest.mark.slow
def test_a_vote_survives_a_killed_server(tmp_path: Path) -> None:
    write_store(pairs(), tmp_path / "pairs")
    process, address = command(tmp_path / "pairs", tmp_path / "work")
    with chromium(tmp_path / "profile") as browser:
        page = Page(browser)
        browser.get(address + "&annotator=ann")
        page.done(0)
        process.kill()
        process.wait()
        page.press("1")
        page.wait("document.getElementById('problem').textContent.includes('not saved')")
        process, again = command(tmp_path / "pairs", tmp_path / "work")
        assert again == address
        page.done(1)
        assert not browser.execute_script("return document.getElementById('problem').textContent")
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert "Votes: ann 1" in out
