"""The Janus that comes with mmalign is one that transformers itself can draw with."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmalign.adapters.image_tokens import load_image_tokens
from mmalign.media import open_image
from mmalign.playground.relations import SIDE, Asked, Thing
from mmalign.playground.tiny_janus import CODES, GRID, TINY_JANUS
from mmalign.records import Media

pytestmark = pytest.mark.filterwarnings("ignore:.*past_key_values", "ignore:.*tie_word_embeddings")

ASKED = Asked(Thing("red", "circle"), Thing("blue", "square"), "above")


def test_plain_transformers_draws_with_the_checkpoint() -> None:
    model = AutoModelForImageTextToText.from_pretrained(TINY_JANUS, dtype=torch.float32)
    words = AutoProcessor.from_pretrained(TINY_JANUS).tokenizer
    # `from_pretrained` of transformers 5.24 forgets this setting, without which it cannot draw.
    model.generation_config.generation_kwargs = {
        "boi_token_id": words.convert_tokens_to_ids(words.boi_token)
    }
    ids = words(f"<s> {ASKED.text} <boi>", return_tensors="pt").input_ids
    codes = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_mode="image",
        guidance_scale=3.0, do_sample=True,
    )  # fmt: skip
    assert codes.shape == (1, GRID**2)
    assert codes.max() < CODES


def test_every_word_of_a_prompt_is_a_token_and_a_picture_has_the_worlds_size() -> None:
    adapter = load_image_tokens(TINY_JANUS)
    assert adapter.collator.tokenizer.unk_token_id not in adapter.collator.prompt_ids(ASKED.prompt)
    (sample,) = adapter.sample([ASKED.prompt], [0], guidance=1.0)
    (media,) = sample.response
    assert isinstance(media, Media)
    assert open_image(media).size == (SIDE, SIDE)
