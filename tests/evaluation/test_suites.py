"""The suites from a benchmark's files to figures and page, on a tiny model and on given answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from made_benchmarks import amber, coco, hallusion_bench, mmhal, object_hal, pope, write_lines
from scripted_endpoint import completion, endpoint
from tiny_vision_language import picture, save_family

from mmalign import cli
from mmalign.evaluation.answering import AnswerOptions, AskedModel, ModelSampler
from mmalign.evaluation.asking import about_image


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp("llava"), "llava")


def evaluate(suite: str, *options: str | Path) -> dict[str, Any]:
    """Run a suite and return its metrics.json."""
    assert cli.main(["evaluate", suite, "--out", "run", *map(str, options)]) == 0
    return json.loads(Path("run/metrics.json").read_text())


def given(answers: dict[str, str], file: str = "given.jsonl") -> Path:
    return write_lines(Path(file), [{"id": i, "answer": text} for i, text in answers.items()])


def values(metrics: dict[str, Any], stage: str = "model") -> dict[str, float]:
    return {name: figure["value"] for name, figure in metrics[stage].items()}


def test_chair_counts_what_annotations_do_not_have(tmp_path: Path) -> None:
    files = coco(Path(), [["dog"], ["car"]], {2: "A car beside a man."})
    said = given({"1": "A dog, a dog and a cat.", "2": "A car and a person."})
    found = values(
        evaluate("chair", "--annotations", *files, "--images", "val2014", "--model", said)
    )
    assert found["chair_i"] == pytest.approx(1 / 5)
    assert found["chair_s"] == 0.5
    assert found["recall"] == 1
    assert found["words"] == 6
    page = Path("run/report.html").read_text()
    assert "<mark>cat</mark>" in page
    assert "data:image/jpeg" in page


def test_chair_compares_two_stages_on_the_same_images(tmp_path: Path) -> None:
    files = coco(Path(), [["dog"]] * 6)
    before = given({str(i): "A dog and a cat." for i in range(1, 7)}, "before.jsonl")
    after = given({str(i): "A dog." for i in range(1, 7)}, "after.jsonl")
    metrics = evaluate(
        "chair", "--annotations", *files, "--images", "val2014",
        "--model", after, "--baseline", before,
    )  # fmt: skip
    assert values(metrics, "before")["chair_i"] == 0.5
    assert values(metrics, "after")["chair_i"] == 0
    assert metrics["difference"]["chair_i"] == {"value": -0.5, "low": -0.5, "high": -0.5}


def test_chair_of_a_real_model_repeats_itself_and_resumes(model: Path, tmp_path: Path) -> None:
    files = coco(Path(), [["dog"], ["cat"], ["car", "person"]])
    options = [
        "--annotations", *files, "--images", "val2014", "--model", model,
        "--max-new-tokens", "4", "--batch-size", "2",
    ]  # fmt: skip
    first = evaluate("chair", *options)
    answers = Path("run/answers-model.jsonl").read_text()
    Path("run/answers-model.jsonl").write_text("".join(answers.splitlines(keepends=True)[:2]))
    second = evaluate("chair", *options)
    assert Path("run/answers-model.jsonl").read_text() == answers
    assert second["model"] == first["model"]
    assert second["n"] == 3
    assert not math.isnan(second["model"]["chair_s"]["low"])


def test_images_in_another_folder_are_missed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(file) for file in coco(Path(), [["dog"]])]
    words = ["--annotations", *files, "--images", "elsewhere", "--model", str(model)]
    assert cli.main(["evaluate", "chair", *words]) == 2
    assert "none of the 1 annotated images is in elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--adapter", "nowhere/model"], "nowhere/model holds no peft adapter"),
        (["--model", "no/such/model"], "no/such/model"),
    ],
)
def test_models_that_are_not_there_are_named(
    options: list[str], words: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(file) for file in coco(Path(), [["dog"]])]
    given = ["--model", str(model)] if "--model" not in options else []
    asked = ["--annotations", *files, "--images", "val2014", *given, *options]
    assert cli.main(["evaluate", "chair", *asked]) == 2
    assert words in capsys.readouterr().err


def test_pope_with_its_own_files() -> None:
    files = pope(Path(), ["random", "popular"])
    answers = {"random/1": "Yes.", "random/2": "Yes", "popular/1": "No", "popular/2": "No."}
    found = values(
        evaluate("pope", "--questions", *files, "--images", "val2014", "--model", given(answers))
    )
    assert found["random/recall"] == 1
    assert found["random/accuracy"] == found["popular/accuracy"] == found["accuracy"] == 0.5
    assert found["yes_ratio"] == 0.5
    assert found["random/f1"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(1 / 3)


def test_pope_makes_its_questions_from_annotations(model: Path) -> None:
    shown = [["dog", "cat", "bus"], ["car", "person", "pizza"], ["dog", "cat", "person"]]
    files = coco(Path(), shown)
    metrics = evaluate(
        "pope", "--annotations", files[0], "--images", "val2014", "--model", model,
        "--max-new-tokens", "2",
    )  # fmt: skip
    assert metrics["n"] == 3 * 3 * 6
    assert Path("run/pope_adversarial.json").read_text().count("\n") == 18


def test_amber_describes_and_answers() -> None:
    questions, annotations = amber(Path())
    answers = {"1": "A dog on a lawn beside a TV.", "1005": "No", "1006": "Yes, it is."}
    found = values(
        evaluate(
            "amber", "--questions", questions, "--annotations", annotations,
            "--images", "image", "--model", given(answers),
        )
    )  # fmt: skip
    assert found["chair"] == pytest.approx(1 / 3)
    assert found["cover"] == found["accuracy"] == 1
    assert found["cog"] == 0.5
    assert found["amber"] == pytest.approx((1 - 1 / 3 + 1) / 2)
    assert "no similarity" in Path("run/report.html").read_text()


def test_object_hal_looks_words_up_without_a_judge() -> None:
    files = coco(Path(), [["dog"], ["car"], ["cat"]])
    questions = object_hal(Path(), [1, 2, 3])
    said = given({"1": "A dog, a dog and a cat.", "2": "Just a bus.", "3": "the sky is very blue"})
    found = values(evaluate("object-hal", "--questions", questions, "--annotations", *files,
                            "--model", said))  # fmt: skip
    assert found["chair_i"] == 0.5  # dog and cat; of three words only, the bus does not count
    assert found["chair_s"] == pytest.approx(1 / 3)
    assert found["chair_s_refine"] == 1
    assert found["recall"] == pytest.approx(1 / 3)
    assert "without a judge" in Path("run/report.html").read_text()


def test_object_hal_takes_the_objects_that_a_judge_lists() -> None:
    files = coco(Path(), [["dog"]] * 2)
    said = given({"1": "There is no cat beside the dog.", "2": "A kitten plays with a puppy."})

    def lists(body: dict[str, Any], number: int) -> str:
        asked = body["messages"][-1]["content"]
        return '["dog"]' if "no cat" in asked else 'The list: ["kitten", "puppy"]'

    with endpoint(lists) as judge:
        options = [
            "--questions", object_hal(Path(), [1, 2]), "--annotations", *files, "--model", said,
            "--judge", "m", "--judge-url", judge.url,
        ]  # fmt: skip
        found = values(evaluate("object-hal", *options))
        assert evaluate("object-hal", *options)["n"] == 2
    assert len(judge.bodies) == 2  # the second run found its judgements on disk
    assert found["chair_i"] == pytest.approx(1 / 3)
    assert "<mark>kitten</mark>" in Path("run/report.html").read_text()


def test_mmhal_rates_with_a_judge() -> None:
    reviews = ["Good. Rating: 6", "Bad.\nRating: 2", "rating: 3", "rating: 3 or rating: 4?"]
    questions = mmhal(Path(), 4)

    def rate(body: dict[str, Any], number: int) -> str:
        asked = body["messages"][-1]["content"]
        assert "Fire hydrant, Street" in asked
        assert "The cap is red" in asked
        return next(text for i, text in enumerate(reviews) if f"answer {i}" in asked)

    said = given({str(i): f"answer {i} {{x}}" for i in range(4)})
    with endpoint(rate) as judge:
        found = values(
            evaluate(
                "mmhal", "--questions", questions, "--images", "images", "--model", said,
                "--judge", "m", "--judge-url", judge.url,
            )
        )  # fmt: skip
    assert found["score"] == (6 + 2 + 3 + 0) / 4
    assert found["hallucination_rate"] == 0.5
    assert found["score/attribute"] == 6
    assert found["score/counting"] == 0


def test_mmhal_with_a_prompt_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    questions, said = mmhal(Path(), 1), given({"0": "blue"})
    Path("prompt.txt").write_text("{} / {} / {} / {}")
    with endpoint(lambda body, n: "Rating: 5") as judge:
        options = [
            "--questions", questions, "--images", "images", "--model", said,
            "--judge", "m", "--judge-url", judge.url, "--judge-prompt", "prompt.txt",
        ]  # fmt: skip
        assert values(evaluate("mmhal", *options))["score"] == 5
        Path("prompt.txt").write_text("{question} {answer}")
        assert cli.main(["evaluate", "mmhal", *map(str, options)]) == 2
    assert judge.questions[0] == (
        "Fire hydrant, Street / What colour is hydrant 0? / "
        "The cap is red and the body is blue. / blue"
    )
    assert "no {image_content}" in capsys.readouterr().err


def test_mmhal_with_a_judge_that_sees() -> None:
    questions, said = mmhal(Path(), 1), given({"0": "blue"})
    with endpoint(lambda body, n: "Rating: 4") as judge:
        evaluate(
            "mmhal", "--questions", questions, "--images", "images", "--model", said,
            "--judge", "m", "--judge-url", judge.url, "--judge-sees",
        )  # fmt: skip
    image, text = judge.bodies[0]["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert "answer: blue" in text["text"]


def test_a_judge_that_fails_stops_the_suite_and_keeps_the_rest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    questions, said = mmhal(Path(), 2), given({"0": "blue", "1": "red"})

    def reply(body: dict[str, Any], number: int) -> Any:
        return 400 if "answer: red" in body["messages"][-1]["content"] else "Rating: 5"

    with endpoint(reply) as judge:
        words = [
            "evaluate", "mmhal", "--questions", str(questions), "--images", "images",
            "--model", str(said), "--judge", "m", "--judge-url", judge.url, "--out", "run",
        ]  # fmt: skip
        assert cli.main(words) == 2
    assert "1 of 2 answers were not judged" in capsys.readouterr().err
    assert len(Path("run/judge.jsonl").read_text().splitlines()) == 1


def test_hallusion_bench_counts_groups_and_forgives_not_knowing_without_a_figure() -> None:
    questions = hallusion_bench(Path())
    names = ["VD/illusion/0/0/0", "VD/illusion/0/1/0", "VS/chart/0/0/0"]
    said = given(dict(zip(names, ["No.", "No, they are equal.", "I cannot tell."], strict=True)))
    options = ["--questions", questions, "--images", "hallusion_bench", "--model", said]
    found = values(evaluate("hallusion-bench", *options))
    assert found["aAcc"] == pytest.approx(2 / 3)
    assert found["qAcc"] == 0.5
    assert found["fAcc"] == 0.5
    assert (found["easy"], found["hard"]) == (1, 0)
    assert found["VS/aAcc"] == 1
    assert found["fp_ratio"] == 0
    with endpoint(lambda body, n: "Incorrect.") as judge:
        more = ["--judge", "m", "--judge-url", judge.url]
        assert values(evaluate("hallusion-bench", *options, *more))["aAcc"] == 0
    assert len(judge.bodies) == 3


def test_hallusion_bench_asks_a_real_model_also_without_a_figure(model: Path) -> None:
    metrics = evaluate(
        "hallusion-bench", "--questions", hallusion_bench(Path()), "--images", "hallusion_bench",
        "--model", model, "--max-new-tokens", "2",
    )  # fmt: skip
    assert metrics["n"] == 3


def test_a_model_that_only_answers_is_held_in_its_precision(model: Path) -> None:
    sampler = ModelSampler(
        AskedModel(model=str(model), precision="bfloat16"),
        str(model),
        None,
        AnswerOptions(max_new_tokens=2),
    )
    sampler([about_image(picture(1), "What?")], [0])
    weights = list(sampler.policy.policy.parameters())
    assert {weight.dtype for weight in weights} == {torch.bfloat16}
    assert not any(weight.requires_grad for weight in weights)


def test_a_model_that_is_served_is_asked_where_it_is() -> None:
    files = coco(Path(), [["dog"], ["cat"], ["bus"]])

    def reply(body: dict[str, Any], number: int) -> Any:
        (message,) = body["messages"]
        image, text = message["content"]
        assert image["image_url"]["url"].startswith("data:image/")
        assert text["text"] == "Describe this image in detail."
        return "A dog." if body["model"] == "tuned" else {"body": completion("A cat", "length")}

    with endpoint(reply) as served:
        options = [
            "--annotations", *files, "--images", "val2014", "--model", "tuned",
            "--baseline", "plain", "--url", served.url, "--max-new-tokens", "7",
        ]  # fmt: skip
        metrics = evaluate("chair", *options)
        assert evaluate("chair", *options)["after"] == metrics["after"]
    assert len(served.bodies) == 6
    assert {body["max_tokens"] for body in served.bodies} == {7}
    assert values(metrics, "before")["chair_i"] == values(metrics, "after")["chair_i"]
    assert metrics["n"] == 3
