"""Best of several pictures, and of several begun ones."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_image_models import save_image_model

from mmalign.adapters.image_tokens import ImageTokenAdapter, load_image_tokens
from mmalign.adapters.image_tokens.drawing import Taste
from mmalign.adapters.image_tokens.search import Assessment, best_of
from mmalign.media import open_image
from mmalign.records import Media, Message, Sample, Text

pytestmark = pytest.mark.filterwarnings("ignore:.*past_key_values", "ignore:.*tie_word_embeddings")

PROMPTS = [(Message("user", (Text(text),)),) for text in ("the dog", "a fox")]
SEEDS = [[1, 2, 3, 4], [5, 6, 7, 8]]
CODES = 16  # of a picture, in four rows


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> ImageTokenAdapter:
    folder = save_image_model(tmp_path_factory.mktemp("emu3"), "emu3")
    return load_image_tokens(folder, resolution=8)


def brightness(media: Media) -> float:
    return float(np.asarray(open_image(media)).mean())


def reward(prompt: int, sample: Sample) -> float:
    """Bright pictures of the dog, dark ones of the fox."""
    (picture,) = sample.response
    assert isinstance(picture, Media)
    return brightness(picture) * (1 if prompt == 0 else -1)


def test_best_of_n_is_the_best_of_what_is_sampled(adapter: ImageTokenAdapter) -> None:
    chosen = best_of(adapter, PROMPTS, SEEDS, reward, batch_size=3)
    for index, prompt in enumerate(PROMPTS):
        every = adapter.sample([prompt] * 4, SEEDS[index], guidance=1.0)
        assert len(set(every)) > 1
        assert chosen.samples[index] == max(every, key=lambda sample: reward(index, sample))
        assert chosen.rewards[index] == max(reward(index, sample) for sample in every)
    assert chosen.codes == 8 * CODES


def test_only_promising_pictures_are_drawn_to_their_end(adapter: ImageTokenAdapter) -> None:
    seen: list[tuple[int, int]] = []

    def potential(prompt: int, part: Media) -> float:
        seen.append((prompt, open_image(part).height))
        return float(len(seen) % 4)  # of the four begun pictures, the third is the likeliest

    chosen = best_of(
        adapter, PROMPTS, SEEDS, lambda prompt, sample: 0.0,
        assessments=[Assessment(1, 2), Assessment(2, 1)], potential=potential,
    )  # fmt: skip
    assert seen[:8] == [(0, 2)] * 4 + [(1, 2)] * 4  # one row of codes, each two pixels high
    assert seen[8:] == [(0, 4)] * 2 + [(1, 4)] * 2
    assert chosen.codes == 8 * 4 + 4 * 4 + 2 * 8
    # 1 2 3 0 keep the third and the second picture; then 1 2 the second, and 3 0 the third.
    assert chosen.samples == [
        adapter.sample([prompt], [seed], guidance=1.0)[0]
        for prompt, seed in zip(PROMPTS, (2, 7), strict=True)
    ]


def test_guidance_is_the_samplers(adapter: ImageTokenAdapter) -> None:
    taste = Taste(guidance=3.0, temperature=0.0)
    chosen = best_of(adapter, PROMPTS, [[1], [2]], reward, taste=taste)
    assert chosen.samples == adapter.sample(PROMPTS, [1, 2], guidance=3.0, temperature=0.0)


@pytest.mark.parametrize(
    ("assessments", "why"),
    [
        ([Assessment(2, 1), Assessment(1, 1)], "must rise"),
        ([Assessment(4, 1)], "must rise"),
        ([Assessment(1, 0)], "keep a picture"),
        ([Assessment(1, 1)], "potential="),
    ],
)
def test_what_makes_no_sense_is_refused(
    adapter: ImageTokenAdapter, assessments: list[Assessment], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        best_of(adapter, PROMPTS, SEEDS, reward, assessments=assessments)
