"""The judge against an endpoint that fails, refuses, is slow, cuts off and talks nonsense."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scripted_endpoint import Script, completion, endpoint
from tiny_vision_language import picture

from mmalign.errors import BadSample, UserError
from mmalign.records import Media, Message, Text
from mmalign.rewards.endpoint import Endpoint
from mmalign.rewards.judge import Judge, JudgeOptions, json_in


def judge(script: Script, slept: list[float] | None = None, **options: Any) -> Judge:
    pauses: list[float] = [] if slept is None else slept
    chosen = {name: options.pop(name) for name in ("key", "per_minute", "tries") if name in options}
    return Judge("m", Endpoint(script.url, sleep=pauses.append, **chosen), **options)


def echo(body: dict[str, Any], number: int) -> str:
    return f"heard: {body['messages'][-1]['content']}"


def test_asks_as_the_protocol_has_it() -> None:
    with endpoint(echo) as script:
        answer = judge(script, key="secret", max_tokens=5, extra={"seed": 3}).ask("Hello?")
    assert answer == "heard: Hello?"
    assert script.bodies == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "Hello?"}],
            "temperature": 0.0,
            "max_tokens": 5,
            "seed": 3,
        }
    ]
    assert script.headers[0]["Authorization"] == "Bearer secret"


def test_images_are_sent_along_and_recorded_by_their_hash(tmp_path: Path) -> None:
    image = picture(1)
    prompt = (Message("user", (image, Text("What is it?"))),)
    with endpoint(lambda body, n: "noise") as script:
        judge(script, record=tmp_path / "judge.jsonl").ask(prompt)
    sent = script.bodies[0]["messages"][0]["content"]
    assert sent[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert sent[1] == {"type": "text", "text": "What is it?"}
    (row,) = map(json.loads, (tmp_path / "judge.jsonl").read_text().splitlines())
    kept = row["request"]["messages"][0]["content"][0]["image_url"]["url"]
    assert kept == f"sha256:{image.digest}"


def test_formats_that_endpoints_do_not_take_are_sent_as_png() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "BMP")
    prompt = (Message("user", (Media("image", data=buffer.getvalue()),)),)
    with endpoint(lambda body, n: "red") as script:
        judge(script).ask(prompt)
    (part,) = script.bodies[0]["messages"][0]["content"]
    assert part["image_url"]["url"].startswith("data:image/png;base64,iVBOR")


def test_an_image_that_is_not_there_costs_its_own_answer() -> None:
    prompt = (Message("user", (Media("image", path="nowhere.png"),)),)
    with endpoint(echo) as script:
        bad, good = judge(script).ask_all([prompt, "Hello?"])
    assert isinstance(bad, BadSample)
    assert "nowhere.png does not exist" in str(bad)
    assert good == "heard: Hello?"


def test_a_model_may_say_nothing_where_that_is_allowed() -> None:
    with endpoint(lambda body, n: {"body": completion([None, "", "half"][n], "length")}) as script:
        lenient = judge(script, cut=True, at_once=1)
        assert [lenient.ask(question) for question in "abc"] == ["", "", "half"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_tries_again_with_longer_pauses(status: int) -> None:
    slept: list[float] = []
    with endpoint(lambda body, n: "at last" if n == 3 else status) as script:
        assert judge(script, slept).ask("?") == "at last"
    assert len(slept) == 3
    assert 0.75 <= slept[0] <= 1.25 < slept[1] <= 2.5 < slept[2]


def test_waits_as_long_as_it_is_asked_to() -> None:
    slept: list[float] = []
    wait = {"status": 429, "headers": {"Retry-After": "7"}}
    with endpoint(lambda body, n: "now" if n else wait) as script:
        judge(script, slept).ask("?")
    assert slept == [7.0]


def test_an_answer_that_is_cut_off_on_the_way_is_asked_for_again() -> None:
    torn = {"raw": b'{"choices": [{"mess', "length": 1000}
    with endpoint(lambda body, n: "whole" if n else torn) as script:
        assert judge(script).ask("?") == "whole"


def test_gives_up_in_the_end_and_when_nobody_is_there() -> None:
    with (
        endpoint(lambda body, n: 503) as script,
        pytest.raises(UserError, match="3 tries: 503 status 503"),
    ):
        judge(script, tries=3).ask("?")
    with pytest.raises(UserError, match="did not answer in 3 tries"):
        judge(script, tries=3).ask("?")  # the server is gone
    assert len(script.bodies) == 3


@pytest.mark.parametrize(("status", "words"), [(401, "key"), (404, "URL")])
def test_what_can_never_succeed_stops_at_once(status: int, words: str) -> None:
    with endpoint(lambda body, n: status) as script, pytest.raises(UserError, match=words):
        judge(script).ask_all(["a"])
    assert len(script.bodies) == 1


def test_one_bad_question_costs_its_own_answer_only() -> None:
    def reply(body: dict[str, Any], number: int) -> Any:
        return 400 if "bad" in body["messages"][-1]["content"] else echo(body, number)

    with endpoint(reply) as script:
        answers = judge(script).ask_all(["one", "bad", "two", "one"])
    assert [answers[i] for i in (0, 2, 3)] == ["heard: one", "heard: two", "heard: one"]
    assert isinstance(answers[1], BadSample)
    assert len(script.bodies) == 3  # equal questions are put once


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (completion("half an ans", "length"), "longer than its tokens"),
        (completion(None, "content_filter"), "said nothing"),
        (completion("  "), "said nothing"),
        ({"choices": []}, "no text"),
    ],
)
def test_answers_that_are_none(answer: dict[str, Any], words: str) -> None:
    with (
        endpoint(lambda body, n: {"body": answer}) as script,
        pytest.raises(BadSample, match=words),
    ):
        judge(script).ask("?")


def test_nothing_is_asked_twice_in_another_run_either(tmp_path: Path) -> None:
    record = tmp_path / "judge.jsonl"
    with endpoint(echo) as script:
        first = judge(script, record=record).ask_all(["a", "b"])
        with record.open("a") as torn:
            torn.write('{"key": "half a li')
        again = judge(script, record=record)
        assert again.ask_all(["a", "b", "c"]) == [*first, "heard: c"]
        assert sorted(script.questions) == ["a", "b", "c"]
        assert again.ask("a", sample=1) == "heard: a"  # another draw is another question
        assert judge(script, record=record, temperature=1.0).ask("a")  # so is another setting
    assert len(script.bodies) == 5
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    assert len(rows) == 5
    assert rows[0]["response"]["usage"]["total_tokens"] == 10


def test_an_answer_that_cannot_be_read_is_asked_for_again(tmp_path: Path) -> None:
    def reply(body: dict[str, Any], number: int) -> str:
        return '{"score": 4}' if number else "It is rather good."

    with endpoint(reply) as script:
        record = tmp_path / "judge.jsonl"
        assert judge(script, record=record).ask("Rate it.", json_in) == {"score": 4}
        assert judge(script, record=record).ask("Rate it.", json_in) == {"score": 4}
    assert len(script.bodies) == 2
    assert "a JSON object or list is wanted" in script.questions[1]


def test_nonsense_is_refused_after_three_attempts() -> None:
    with (
        endpoint(lambda body, n: f"nonsense {n}") as script,
        pytest.raises(BadSample, match="3 answers of m could not be used"),
    ):
        judge(script).ask("Rate it.", json_in)
    assert len(script.bodies) == 3


def test_a_schema_is_passed_on() -> None:
    schema = {"type": "object", "properties": {"score": {"type": "integer"}}}
    with endpoint(lambda body, n: '{"score": 1}') as script:
        judge(script).ask("?", json_in, schema=schema)
    assert script.bodies[0]["response_format"]["json_schema"]["schema"] == schema


def test_a_spent_budget_stops_and_keeps_what_there_is(tmp_path: Path) -> None:
    record = tmp_path / "judge.jsonl"
    questions = [str(i) for i in range(6)]
    with endpoint(echo) as script:
        with pytest.raises(UserError, match="budget of 25 tokens is spent"):
            judge(script, record=record, budget=25, at_once=1).ask_all(questions)
        assert len(script.bodies) == 3  # of ten tokens each
        assert len(judge(script, record=record).ask_all(questions)) == 6
    assert len(script.bodies) == 6


def test_requests_come_no_faster_than_allowed() -> None:
    slept: list[float] = []
    with endpoint(echo) as script:
        judge(script, slept, per_minute=6, at_once=1).ask_all(["a", "b", "c"])
    assert len(slept) == 2
    assert all(0 < pause <= 20 for pause in slept)  # one every ten seconds, from the first on
    assert slept[1] > slept[0]


def test_options_open_a_judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_KEY", "abc")
    with endpoint(echo) as script:
        options = JudgeOptions(judge="m", judge_url=script.url, judge_key="MY_KEY")
        options.open(tmp_path / "judge.jsonl").ask("?")
    assert script.headers[0]["Authorization"] == "Bearer abc"
    with pytest.raises(UserError, match="no address"):
        JudgeOptions(judge="m", judge_url="localhost:8000").open(tmp_path / "judge.jsonl")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('Here: ["dog", "cat"]. Done.', ["dog", "cat"]),
        ('```json\n{"a": [1, 2]}\n```', {"a": [1, 2]}),
        ('[sic] the answer is {"a": 1}', {"a": 1}),
    ],
)
def test_json_is_found_in_what_surrounds_it(text: str, value: Any) -> None:
    assert json_in(text) == value
