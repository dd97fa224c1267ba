"""Experts correct a model's own answers: what becomes pairs, and what is refused and why."""

from __future__ import annotations

import functools
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_endpoint import Reply, endpoint
from tiny_vision_language import picture, save_family

from mmalign import cli
from mmalign.data import open_dataset
from mmalign.data_builders.expert_correction import correction_in, rambles
from mmalign.records import Span, Text, media_of, text_of
from mmalign.rewards import judge
from mmalign.rewards.endpoint import Endpoint

ANSWER = "A dog sits here.  It is red!\nTwo cats sleep. Fine."


def entry(copied: str, rewritten: str, score: int = 4, kind: str = "correct") -> dict[str, Any]:
    return {
        "copied_content": copied,
        "score": score,
        "error_type": kind,
        "rewritten_content": rewritten,
        "reason": "",
    }


def report(*entries: dict[str, Any], added: str = "") -> str:
    return json.dumps({"image_description": "", "sentences": list(entries), "added": added})


RIGHT = (
    entry("A dog sits here.", "A cat sits here.", 1, "image_recognition_error"),
    entry("It is red!", "It is red!"),
    entry("Two cats sleep.", "", 2, "image_recognition_error"),
    entry("Fine.", "Fine, I think.", 3, "language_comprehension_error"),
)


def test_sentences_are_rewritten_where_they_stand() -> None:
    found = correction_in(report(*RIGHT, added="It is night."), ANSWER)
    assert found.text == "A cat sits here.  It is red! Fine, I think. It is night."
    assert [sentence.copied for sentence in found.report][:2] == ["A dog sits here.", "It is red!"]
    assert [sentence.weight for sentence in found.report] == [2.5, 1.0, 2.0, 1.5, 1.0]
    assert [sentence.seeing_weight for sentence in found.report] == [3.0, 1.0, 3.0, 1.0, 1.0]


@given(st.lists(st.sampled_from(["A dog. ", "Red\n", "Yes!  ", "… "]), min_size=1, max_size=6))
def test_nothing_rewritten_is_nothing_changed(sentences: list[str]) -> None:
    answer = "".join(sentences).strip()
    same = [entry(each.strip(), each.strip()) for each in sentences]
    assert correction_in(report(*same), answer).text == answer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("I cannot see it.", "JSON"),
        ('{"sentences": "none"}', "list of sentences"),
        (report(*RIGHT[:3]), "word for word"),
        (report(entry("A dog sat here.", "")), "word for word"),
        (report(*RIGHT[1:], entry("x", "x", 5)), "a score is 1, 2, 3 or 4"),
        (json.dumps({"sentences": [{"score": 4}]}), "copied_content"),
    ],
)
def test_reports_that_are_no_use_say_what_was_wanted(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        correction_in(text, ANSWER)


def test_answers_that_ramble() -> None:
    assert rambles("")
    assert rambles("A dog. It runs. It runs.")
    assert rambles("no " * 31)
    assert not rambles("A dog. It runs.")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expert")
    save_family(folder / "model", "llava")
    (folder / "images").mkdir()
    for seed in range(4):
        (folder / f"images/{seed}.png").write_bytes(picture(seed).content)
        (folder / f"images/{seed}.txt").write_text(f"A caption of {seed}.")
    (folder / "images/4.png").write_bytes(b"no image")
    return folder


def command(photos: Path, out: Path, url: str, *more: str) -> list[str]:
    words = ["build", "expert-correction", str(photos / "images"), "--out", str(out)]
    words += ["--model", str(photos / "model"), "--max-new-tokens", "12"]
    return [*words, "--judge", "m", "--judge-url", url, *more]


def own_answer(body: dict[str, Any]) -> str:
    """What the expert was shown of the model's answer."""
    text = body["messages"][0]["content"][1]["text"]
    return str(text).split("The model's answer:\n")[1].split("\n\nNearly ideal")[0].strip()


def correct(body: dict[str, Any], number: int) -> Reply:
    """Finds every answer wrong as a whole, but fails for one caption and garbles another first."""
    text = body["messages"][0]["content"][1]["text"]
    if "A caption of 2." in text:
        return 400
    if "A caption of 1." in text and len(body["messages"]) == 1:
        return "What a picture!"
    return report(entry(own_answer(body), "A better answer.", 1, "image_recognition_error"))


def test_pairs_of_corrections_and_of_dataset_answers(photos: Path, tmp_path: Path) -> None:
    with endpoint(correct) as script:
        assert cli.main(command(photos, tmp_path / "out", script.url)) == 0
        asked = len(script.bodies)
    made = list(open_dataset(tmp_path / "out"))
    assert [text_of(p.chosen.response) for p in made] == [
        text for seed in (0, 1, 3) for text in ("A better answer.", f"A caption of {seed}.")
    ]
    for correction, plain in zip(made[::2], made[1::2], strict=True):
        own = text_of(correction.rejected.response)
        assert correction.rejected.response == (Text(own, (Span(0, len(own), 2.5),)),)
        # silenced: a text
        assert correction.chosen.response[0].weights == (Span(0, 16, 2.5),)  # type: ignore[union-attr]
        assert plain.rejected.response == (Text(own),)
        assert len(media_of(correction.chosen.prompt)) == 1
        assert correction.source.models[1] == "m"
    lines = (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [2, 4]
    assert asked == 5  # one caption twice, no broken image
    kept = (tmp_path / "out/.cache/judge.jsonl").read_text()
    assert "A better answer." in kept
    with endpoint(lambda body, number: 500) as script:  # everything is on record
        again = command(photos, tmp_path / "out", script.url, "--make", "pairs", "--overwrite")
        assert cli.main([*again, "--limit", "2"]) == 0
        assert not script.bodies


def test_four_candidates_for_the_whole_objective(photos: Path, tmp_path: Path) -> None:
    with endpoint(correct) as script:
        words = command(photos, tmp_path / "out", script.url, "--make", "four")
        assert cli.main(words) == 0
    made = list(open_dataset(tmp_path / "out"))
    assert [p.grades for p in made] == [(1.0, 1.0, 1.0, 0.0)] * 3
    given_, errors, seeing, own = (s.response[0] for s in made[0].candidates)
    assert given_ == Text("A caption of 0.")
    # silenced: texts
    assert [t.weights[0].weight for t in (errors, seeing, own)] == [2.5, 3.0, 2.5]  # type: ignore[union-attr]


def test_an_expert_is_needed_and_one_is_enough(photos: Path, tmp_path: Path) -> None:
    words = command(photos, tmp_path / "out", "http://localhost:1/v1")
    assert cli.main([*words, "--local-expert", "./model"]) == cli.USER
    words[words.index("--judge") + 1] = ""
    assert cli.main(words) == cli.USER


def test_a_local_expert_is_asked_as_a_judge_is(photos: Path, tmp_path: Path) -> None:
    words = command(photos, tmp_path / "out", "http://localhost:1/v1", "--judge-tokens", "8")
    words[words.index("--judge") + 1] = ""
    # a tiny model writes no JSON: all is refused, and said to be
    assert cli.main([*words, "--local-expert", str(photos / "model"), "--limit", "1"]) == cli.USER
    (line,) = (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
    assert "3 answers could not be used" in line


@pytest.mark.slow
def test_opa_dpo_from_end_to_end(photos: Path, tmp_path: Path) -> None:
    """As docs/builders.md says: correct, fine-tune on the chosen, align that model."""

    def always(body: dict[str, Any], number: int) -> Reply:
        better = entry(own_answer(body), f"A better answer, {number}.", 1)
        return report(better)

    data, opa = tmp_path / "corrected", tmp_path / "opa"
    with endpoint(always) as script:
        assert cli.main(command(photos, data, script.url, "--make", "four")) == 0
        pairs = command(photos, tmp_path / "pairs", script.url)
        assert cli.main(pairs) == 0
    tuning = ["--steps", "2", "--batch-size", "2", "--held-out", "0"]
    words = ["align-vlm", "--model", str(photos / "model"), "--data", str(tmp_path / "pairs")]
    assert cli.main([*words, "--objective", "nll()", "--merged", "--out", str(opa), *tuning]) == 0
    words = ["align-vlm", "--model", str(opa / "merged"), "--data", str(data), *tuning]
    done = tmp_path / "done"
    assert cli.main([*words, "--objective", "opa_dpo()", "--out", str(done)]) == 0
    first = json.loads((done / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(4.4 * 0.6931471806, abs=1e-3)


def test_an_endpoint_in_trouble_costs_only_what_it_garbles_or_refuses(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers 500 once, garbage always, too late once, and 400 always."""
    hasty = functools.partial(Endpoint, timeout=0.5, pause=0.01)
    monkeypatch.setattr(judge, "Endpoint", hasty)
    failed: set[str] = set()

    def troubled(body: dict[str, Any], number: int) -> Reply:
        seen = re.search(r"A caption of (\d)", body["messages"][0]["content"][1]["text"])
        assert seen is not None
        if seen[1] == "1":
            return "What a picture!"
        if seen[1] == "3":
            return 400
        if seen[1] not in failed:
            failed.add(seen[1])
            if seen[1] == "0":
                return 500
            time.sleep(1)
        return report(entry(own_answer(body), "A better answer.", 1))

    with endpoint(lambda body, number: 503) as script:  # away altogether: the build stops
        assert cli.main(command(photos, tmp_path / "out", script.url)) != 0
    with endpoint(troubled) as script:
        same = command(photos, tmp_path / "out", script.url, "--overwrite")
        assert cli.main(same) == 0
    made = [text_of(p.chosen.response) for p in open_dataset(tmp_path / "out")]
    assert made == ["A better answer.", "A caption of 0.", "A better answer.", "A caption of 2."]
    lines = [json.loads(x) for x in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [1, 3, 4]  # with the two that were used, all five
    for line, reason in zip(
        lines, ("could not be used", "refused", "no known format"), strict=True
    ):
        assert reason in line["reason"]
