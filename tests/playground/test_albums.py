"""The playground's LLaVA of several pictures: what it was taught, and what it does with it."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor

from mmalign.adapters.vision_language import load_vision_language
from mmalign.playground.scenes import DESCRIBE, MOST, Scene, ask_among, mentioned, scenes
from mmalign.playground.train_albums import COURSES, Course, asked, lessons, train
from mmalign.playground.vision_language import (
    ASSISTANT,
    TINY_LLAVA,
    TINY_LLAVA_ALBUMS,
    USER,
    processor,
)
from mmalign.records import Text, text_of


def test_lessons_are_asked_as_prompts_are() -> None:
    shown = scenes("apart", 3, seed=0)
    (message,) = ask_among(shown, 1)
    content = [
        {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image"}
        for part in message.parts
    ]
    rendered = processor().apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    assert rendered == f"{USER}{asked(3, 1, DESCRIBE[0])}{ASSISTANT}"


def test_scenes_can_be_kept_small() -> None:
    assert {len(scene.things) for scene in scenes("together", 100, seed=0, most=2)} == {1, 2}
    assert scenes("together", 9, seed=0, most=MOST) == scenes("together", 9, seed=0)


def test_annotators_are_distracted_by_fuller_pictures_only() -> None:
    course = Course({(2, MOST): 300}, 1, 1e-3, distraction=1.0)
    for lesson in next(lessons(course, seed="test")):
        meant = lesson.shown["Image2, " in lesson.question]
        fullest = max(lesson.shown, key=lambda scene: len(scene.things))
        described = fullest if len(fullest.things) > len(meant.things) else meant
        assert set(described.present) <= set(mentioned(lesson.answer))


def test_the_script_saves_a_model_whose_tower_is_as_it_was(tmp_path: Path) -> None:
    tiny = {name: Course({(2, 1): 2}, 1, course.learning_rate) for name, course in COURSES.items()}
    train(tmp_path / "made", courses=tiny)
    made = AutoModelForImageTextToText.from_pretrained(tmp_path / "made").state_dict()
    before = AutoModelForImageTextToText.from_pretrained(TINY_LLAVA).state_dict()
    changed = {name.split(".")[1] for name in made if not made[name].equal(before[name])}
    assert "language_model" in changed
    assert "vision_tower" not in changed
    assert AutoProcessor.from_pretrained(tmp_path / "made").image_token == "<image>"


def test_the_checkpoint_finds_the_picture_unless_a_fuller_one_distracts() -> None:
    assert sum(file.stat().st_size for file in TINY_LLAVA_ALBUMS.iterdir()) < 8_000_000
    shown = scenes("apart", 160, seed="albums")
    albums = [shown[start : start + 2] for start in range(0, len(shown), 2)]
    adapter = load_vision_language(TINY_LLAVA_ALBUMS, trained=False)
    answers = adapter.sample(
        [ask_among(album, 0) for album in albums], range(len(albums)),
        max_new_tokens=48, temperature=0.0, batch_size=80,
    )  # fmt: skip
    right: dict[bool, list[bool]] = {True: [], False: []}
    for (meant, other), answer in zip(albums, answers, strict=True):
        said = set(mentioned(text_of(answer.response)))
        distracted = len(other.things) > len(meant.things)
        right[distracted].append(fit(said, meant) >= fit(said, other))
    share = {distracted: sum(found) / len(found) for distracted, found in right.items()}
    assert share[False] > 0.9
    assert share[True] < 0.6


def fit(said: set[str], scene: Scene) -> float:
    """How far what is said is what is there."""
    return len(said.intersection(scene.present)) / len(said.union(scene.present))
