"""Every public vision-language format is recognised by its columns and read as its authors mean it.

The rows are made up; columns and nesting are those of the public datasets.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data import made

from mmalign.data import DatasetError, RecordError, open_dataset, trl
from mmalign.data.convert import QUARANTINE, convert
from mmalign.data.corrections import weigh_corrections
from mmalign.data.store import write_store
from mmalign.records import Media, Message, Preference, Span, Text, media_of, text_of

PNG = made.picture(1).content
OTHER = made.picture(2).content
BYTES = {"bytes": PNG, "path": None}
FILE, OTHER_FILE = "images/a.png", "images/b.png"
ORIGIN = {"origin_dataset": "LCS-558K", "origin_split": "train", "idx": 7, "image_path": "x/a.jpg"}
SIDES = {"chosen": "A dog.", "rejected": "A cat."}


def rating(*values: str) -> dict[str, Any]:
    aspects = ("Helpfulness", "Visual Faithfulness", "Ethical Considerations")
    given = zip(aspects, values, strict=True)
    return {aspect: {"Rating": value, "Rationale": "so"} for aspect, value in given}


def said(model: str, response: str, *values: str) -> dict[str, Any]:
    return {"model": model, "response": response, "annotations": rating(*values)}


COMPLETIONS = [
    said("b", "B.", "3", "N/A", "4"),
    said("a", "A.", "5", "4", "5"),
    said("c", "C.", "4", "4", "4"),
    said("none", "N.", "N/A", "N/A", "N/A"),
]
HUMAN = {"from": "human", "value": "<image>\nWhat is it?"}
ROWS: dict[str, dict[str, Any]] = {
    "rlhf-v": {
        "ds_name": "RLHF-V",
        "image": BYTES,
        "text": json.dumps({"question": "What is it?", **SIDES}),
        **ORIGIN,
    },
    "rlaif-v": {"ds_name": "R", "image": BYTES, "question": "What is it?", **SIDES, **ORIGIN},
    "vlfeedback": {
        "id": "1",
        "prompt": "What is it?",
        "models": ["b", "a", "c", "none"],
        "completions": COMPLETIONS,
        "img_path": FILE,
    },
    "povid": {
        "id": "1",
        "image": FILE,
        "conversations": [HUMAN, {"from": "gpt", "value": "A dog."}],
        "rejected_conversations": [HUMAN, {"from": "gpt", "value": "A cat."}],
    },
    "mia-dpo": {
        "id": 1,
        "image": [FILE, FILE],
        "prompt": "<image-placeholder><image-placeholder>\nWhat is it?",
        **SIDES,
        "gt": "A dog.",
    },
    "mm-rlhf-ranked": {
        "id": 1,
        "question": "What is it?",
        "answer": "a dog",
        "image": FILE,
        "video": "",
        "models_output": ["B.", "A.", "C."],
        "faithfulness": [3, 5, 4],
        "helpfulness": [None, 4, 4],
        "ethical": [4, 5, 4],
        "final_ranking": [3, 1, 2],
        "score_reasons": ["so", "so", "so"],
        "ranking_reason": "so",
    },
    "ic-vco": {
        "prompt": "What is it?",
        "images": [FILE, OTHER_FILE],
        **SIDES,
        "chosen_response_spans": [[2, 5]],
        "rejected_response_spans": [[2, 5]],
    },
    "mm-rlhf": {"prompt": "What is it?", "image": FILE, **SIDES, "ls_factor": 0.5},
    "mdpo": {
        "img_path": FILE,
        "prompt": "A chat between a user and an AI. USER: <image>\nWhat is it? ASSISTANT:",
        **SIDES,
    },
    "opa-dpo": {
        "queries": "What is it?",
        "image_bytes": base64.b64encode(PNG).decode(),
        "standard_response": "A dog.",
        "AI_pseudo_response": "A big dog.",
        "original_generate_response": "A cat.",
        "AI_json_report": "{}",
    },
    "llava-rlhf": {
        "id": "000000000001",
        "image": FILE,
        "conversations": [HUMAN],
        "output_1": {"from": "llava", "value": "A cat."},
        "output_2": {"from": "llava", "value": "A dog."},
        "hallucination": True,
        "preference": 2,
    },
    "symmpo": {
        "question": "What is it?",
        "image_1": BYTES,
        "image_2": {"bytes": OTHER, "path": None},
        "resp_1_w": "A dog.",
        "resp_1_l": "A cat.",
        "resp_2_w": "A cat.",
        "resp_2_l": "A dog.",
        "logps": "[]",
    },
    "llama-factory": {
        "conversations": [HUMAN],
        "chosen": {"from": "gpt", "value": "A dog."},
        "rejected": {"from": "gpt", "value": "A cat."},
        "images": [FILE],
    },
    "ms-swift": {
        "messages": [
            {"role": "user", "content": "<image>What is it?"},
            {"role": "assistant", "content": "A dog."},
        ],
        "rejected_response": "A cat.",
        "images": [FILE],
    },
}


RANKED = ("vlfeedback", "mm-rlhf-ranked")


def put(folder: Path, *rows: dict[str, Any]) -> Path:
    """The rows as JSON lines, or as Parquet where they hold bytes, beside an image."""
    (folder / "images").mkdir(exist_ok=True)
    (folder / FILE).write_bytes(PNG)
    (folder / OTHER_FILE).write_bytes(OTHER)
    if any(isinstance(value, dict) and "bytes" in value for row in rows for value in row.values()):
        pq.write_table(pa.Table.from_pylist(list(rows)), folder / "rows.parquet")
        return folder / "rows.parquet"
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


def texts(preference: Preference) -> list[str]:
    return [text_of(sample.response) for sample in preference.candidates]


@pytest.mark.parametrize("name", ROWS)
def test_each_format_is_recognised_and_read(name: str, tmp_path: Path) -> None:
    dataset = open_dataset(put(tmp_path, ROWS[name]))
    assert dataset.format == name
    assert dataset.has_media
    (message,) = dataset[0].chosen.prompt
    images = 2 if name == "mia-dpo" else 1
    assert [type(part) for part in message.parts] == [Media] * images + [Text]
    assert message.role == "user"
    assert message.parts[-1] == Text("What is it?")
    assert {image.content for image in media_of(dataset[0].chosen.prompt)} == {PNG}
    expected = ["A.", "C.", "B."] if name in RANKED else ["A dog.", "A cat."]
    assert texts(dataset[0]) == expected


@pytest.mark.parametrize("name", ROWS)
def test_each_format_survives_our_store_and_trl(name: str, tmp_path: Path) -> None:
    dataset = open_dataset(put(tmp_path, ROWS[name]))
    write_store(list(dataset), tmp_path / "store")
    stored = open_dataset(tmp_path / "store")
    assert [found.id for found in stored] == [given.id for given in dataset]
    if name not in (*RANKED, "ic-vco"):
        for given in dataset:
            written = trl.read(trl.write(given))
            assert written.chosen.prompt_id == given.chosen.prompt_id
            assert texts(written) == texts(given)


def test_ratings_rank_the_answers(tmp_path: Path) -> None:
    (ranked,) = open_dataset(put(tmp_path, ROWS["vlfeedback"]))
    assert ranked.grades == pytest.approx((14 / 3, 4.0, 3.5))
    listed = {key: [each[key] for each in COMPLETIONS] for key in COMPLETIONS[0]}
    (turned,) = open_dataset(put(tmp_path, ROWS["vlfeedback"] | {"completions": listed}))
    assert turned.id == ranked.id


def test_people_ranked_the_answers_of_mm_rlhf(tmp_path: Path) -> None:
    (ranked,) = open_dataset(put(tmp_path, ROWS["mm-rlhf-ranked"]))
    assert ranked.grades == pytest.approx((14 / 3, 4.0, 3.5))
    assert ranked.source.details["final_ranking"] == [3, 1, 2]


def test_each_answer_of_ic_vco_has_its_image_and_its_edited_words(tmp_path: Path) -> None:
    (found,) = open_dataset(put(tmp_path, ROWS["ic-vco"]))
    assert found.grades == (1.0, 1.0)
    shown = [media_of(sample.prompt)[0].content for sample in found.candidates]
    assert shown == [PNG, OTHER]
    left_out = (Span(0, 2, 0.0), Span(5, 6, 0.0))
    assert [s.response for s in found.candidates] == [
        (Text("A dog.", left_out),),
        (Text("A cat.", left_out),),
    ]


def test_rows_of_two_preferences(tmp_path: Path) -> None:
    dataset = open_dataset(put(tmp_path, ROWS["opa-dpo"], ROWS["opa-dpo"]))
    assert len(dataset) == 4
    assert [texts(each)[0] for each in dataset] == ["A dog.", "A big dog."] * 2
    assert texts(dataset[3]) == texts(dataset[1]) == ["A big dog.", "A cat."]
    streamed = open_dataset(put(tmp_path, ROWS["opa-dpo"]), streaming=True)
    assert [texts(each) for each in streamed] == [texts(dataset[0]), texts(dataset[1])]


REPORT = {
    "image_description": "A dog on grass.",
    "sentence 1": {
        "copied_content": "A cat sits.",
        "score": 1,
        "error_type": "image_recognition_error",
        "object": "cat -> dog",
        "rewritten_content": "A dog sits.",
        "reason": "It is a dog.",
    },
    "sentence 2": {
        "copied content": "It is sunny.",
        "score": 4,
        "error type": "correct",
        "rewritten content": "It is sunny.",
    },
    "sentence 3": {
        "copied_content": "All good.",
        "score": 3,
        "error_type": "language_comprehension_error",
        "rewritten_content": "All is well.",
    },
    "Added": {"rewritten_content": "There is grass."},
}
REPORTED = ROWS["opa-dpo"] | {
    "original_generate_response": "A cat sits. It is sunny. All good.",
    "AI_pseudo_response": "A dog sits. It is sunny. All is well. There is grass.",
    "AI_json_report": json.dumps(REPORT),
}


def weights(text: Text) -> dict[str, float]:
    return {text.text[s.start : s.end].strip(): s.weight for s in text.weights}


def test_reports_of_experts_weigh_sentences(tmp_path: Path) -> None:
    """Score 1 weighs 2.5, score 3 weighs 1.5, what is right or added weighs 1."""
    given, corrected = open_dataset(put(tmp_path, REPORTED))
    assert given.chosen.response[0].weights == given.rejected.response[0].weights == ()
    assert weights(corrected.chosen.response[0]) == {"A dog sits.": 2.5, "All is well.": 1.5}
    assert weights(corrected.rejected.response[0]) == {"A cat sits.": 2.5, "All good.": 1.5}
    assert corrected.source.details["weighted"] is True


def test_a_report_of_another_answer_leaves_it_unweighted_and_says_so(tmp_path: Path) -> None:
    other = REPORTED | {"original_generate_response": "A bird sings."}
    _, corrected = open_dataset(put(tmp_path, other))
    assert corrected.chosen.response[0].weights == corrected.rejected.response[0].weights == ()
    assert corrected.source.details["weighted"] is False
    with pytest.raises(RecordError, match="field 'AI_json_report': does not fit"):
        open_dataset(put(tmp_path, other), format="opa-dpo-four")[0]


def test_four_candidates_for_the_whole_objective(tmp_path: Path) -> None:
    (four,) = open_dataset(put(tmp_path, REPORTED), format="opa-dpo-four")
    given, by_errors, by_seeing, own = (sample.response[0] for sample in four.candidates)
    assert given.text == "A dog."
    assert weights(by_errors) == {"A dog sits.": 2.5, "All is well.": 1.5}
    assert weights(by_seeing) == {"A dog sits.": 3.0}
    assert weights(own) == {"A cat sits.": 2.5, "All good.": 1.5}
    assert four.grades == (1, 1, 1, 0)


def test_relative_names_may_start_in_another_folder(tmp_path: Path) -> None:
    elsewhere = tmp_path / "pictures"
    (elsewhere / "images").mkdir(parents=True)
    (elsewhere / FILE).write_bytes(OTHER)
    file = put(tmp_path, ROWS["povid"])
    (tmp_path / FILE).unlink()
    for opened in (
        open_dataset(file, images=elsewhere)[0],
        next(iter(open_dataset(file, images=elsewhere, streaming=True))),
    ):
        assert media_of(opened.chosen.prompt)[0].content == OTHER
    with pytest.raises(DatasetError, match="no folder of images 'nowhere'"):
        open_dataset(file, images="nowhere")
    convert(str(file), tmp_path / "store", images=elsewhere)
    assert media_of(open_dataset(tmp_path / "store")[0].chosen.prompt)[0].content == OTHER


def test_an_error_names_the_row_of_the_file(tmp_path: Path) -> None:
    broken = ROWS["opa-dpo"] | {"AI_pseudo_response": ""}
    dataset = open_dataset(put(tmp_path, ROWS["opa-dpo"], broken))
    assert texts(dataset[2]) == ["A dog.", "A cat."]
    with pytest.raises(RecordError, match="row 1, field 'AI_pseudo_response': is empty"):
        dataset[3]


def test_pairs_of_images_swap_their_answers(tmp_path: Path) -> None:
    first, second = open_dataset(put(tmp_path, ROWS["symmpo"]))
    assert texts(first) == texts(second)[::-1]
    images = [media_of(each.chosen.prompt)[0].content for each in (first, second)]
    assert images == [PNG, OTHER]


def test_corrected_words_weigh_more() -> None:
    chosen, rejected = weigh_corrections("A dog sits on grass.", "A black cat sits on grass.")
    assert [chosen.text[s.start : s.end] for s in chosen.weights] == ["dog"]
    assert [rejected.text[s.start : s.end] for s in rejected.weights] == ["black cat"]
    assert {span.weight for span in (*chosen.weights, *rejected.weights)} == {5.0}


def test_what_was_only_added_weighs_in_one_answer() -> None:
    chosen, rejected = weigh_corrections("A dog.", "A dog and a cat.")
    assert chosen.weights == ()
    assert [rejected.text[s.start : s.end] for s in rejected.weights] == ["and a cat"]


def test_conversations_are_cut_at_the_first_answer_that_differs(tmp_path: Path) -> None:
    more = {"from": "human", "value": "Sure?"}
    start = [HUMAN, {"from": "gpt", "value": "A dog."}, more]
    row = ROWS["povid"] | {
        "conversations": [*start, {"from": "gpt", "value": "Yes."}],
        "rejected_conversations": [*start, {"from": "gpt", "value": "No."}],
    }
    (found,) = open_dataset(put(tmp_path, row))
    assert [message.role for message in found.chosen.prompt] == ["user", "assistant", "user"]
    assert texts(found) == ["Yes.", "No."]


def test_other_images_for_the_rejected_answer(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "b.png").write_bytes(OTHER)
    row = {k: v for k, v in ROWS["ms-swift"].items() if k != "rejected_response"}
    (found,) = open_dataset(put(tmp_path, row | {"rejected_images": ["images/b.png"]}))
    assert texts(found) == ["A dog.", "A dog."]
    sides = [media_of(side.prompt)[0].content for side in (found.chosen, found.rejected)]
    assert sides == [PNG, OTHER]


def test_images_without_a_place_come_first(tmp_path: Path) -> None:
    row = ROWS["mia-dpo"] | {"prompt": "Here <image-placeholder> and so on"}
    (found,) = open_dataset(put(tmp_path, row))
    assert [type(part) for part in found.chosen.prompt[0].parts] == [Media, Text, Media, Text]


def test_records_with_broken_images_go_to_quarantine(tmp_path: Path) -> None:
    broken = {"cut.png": PNG[: len(PNG) // 2], "empty.png": b"", "text.jpg": b"not a picture"}
    names = ["images/a.png", *(f"images/{name}" for name in broken), "images/gone.png"]
    path = put(tmp_path, *(ROWS["povid"] | {"image": name} for name in names))
    for name, content in broken.items():
        (tmp_path / "images" / name).write_bytes(content)
    store = open_dataset(convert(str(path), tmp_path / "store"))
    assert len(store) == 1
    lines = (tmp_path / "store" / QUARANTINE).read_text().splitlines()
    refused = {each["row"]: each for each in map(json.loads, lines)}
    assert list(refused) == [1, 2, 3, 4]
    assert {each["field"] for each in refused.values()} == {"images"}
    assert all(names[row] in each["reason"] for row, each in refused.items())


def test_the_margin_of_a_row_is_kept(tmp_path: Path) -> None:
    (found,) = open_dataset(put(tmp_path, ROWS["mm-rlhf"]))
    assert found.aux == {"margin": 0.5}


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("rlhf-v", {"text": "{"}, "field 'text': is not valid JSON"),
        ("rlaif-v", {"chosen": "A cat. "}, "field 'rejected': is the same as chosen"),
        ("rlaif-v", {"rejected": "A <image> cat."}, "field 'rejected': holds the placeholder"),
        ("mia-dpo", {"image": [FILE]}, "field 'prompt': has 2 places for .* the row has 1"),
        ("povid", {"rejected_conversations": ROWS["povid"]["conversations"]}, "does not differ"),
        ("vlfeedback", {"completions": COMPLETIONS[:1]}, "1 of 1 have ratings in numbers"),
        ("mm-rlhf-ranked", {"ethical": [5]}, "'ethical': does not hold a rating for each of 3"),
        ("ic-vco", {"images": [FILE]}, "'images': has 1, but one for each of two"),
        ("ic-vco", {"chosen_response_spans": [[2, 9]]}, "beyond the answer's 6 characters"),
        ("mdpo", {"prompt": "USER: a ASSISTANT: b USER: c"}, "is rendered by a chat template"),
        ("llama-factory", {"conversations": [{"from": "x", "value": "y"}]}, "message from 'x'"),
        ("ms-swift", {"messages": ROWS["ms-swift"]["messages"][:1]}, "has to end with the chosen"),
        ("llava-rlhf", {"preference": 0}, "field 'preference': is 0, but 1 or 2 is wanted"),
        ("opa-dpo", {"image_bytes": "?"}, "field 'image_bytes': is not valid base64"),
    ],
)
def test_what_is_wrong_is_named(
    name: str, change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    dataset = open_dataset(put(tmp_path, ROWS[name], ROWS[name] | change))
    with pytest.raises(RecordError, match=f"row 1, .*{words}"):
        list(dataset)


def test_messages_beside_an_image_are_trls(tmp_path: Path) -> None:
    row = {"image": FILE, "prompt": [{"role": "user", "content": "What is it?"}]}
    row |= {k: [{"role": "assistant", "content": v}] for k, v in SIDES.items()}
    (found,) = open_dataset(put(tmp_path, row))
    image = found.chosen.prompt[0].parts[0]
    assert isinstance(image, Media)
    assert found.chosen.prompt == (Message("user", (image, Text("What is it?"))),)
