"""A LLaVA of 3.6 million weights that describes the scenes, hallucinations included.

Its classes, processor and files are those of any LLaVA in transformers, and its checkpoint comes
with mmalign. `mmalign.playground.train_vision_language` has trained it, and
`mmalign.playground.train_albums` another one that answers about one of several pictures.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from mmalign.playground.scenes import COLOURS, DESCRIBE, GRID, SHAPES

TINY_LLAVA = Path(__file__).parent / "tiny-llava"
"""The folder of the checkpoint that comes with mmalign."""
TINY_LLAVA_ALBUMS = Path(__file__).parent / "tiny-llava-albums"
"""The folder of the one that answers about one of several pictures."""

PIXELS, PATCH = 48, 16  # one image token for each cell of the scenes' grid
IMAGE, USER, ASSISTANT, END, PAD = "<image>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
SPECIAL = (PAD, END, USER, ASSISTANT, IMAGE)  # in the order of their ids
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}<|user|>{% else %}<|assistant|>{% endif %}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message.role != 'user' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def random_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """The model before it has learned anything, with its processor's vocabulary."""
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=3,
        num_attention_heads=6,
        image_size=PIXELS,
        patch_size=PATCH,
        projection_dim=192,
    )
    text = LlamaConfig(
        vocab_size=len(processor.tokenizer),
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        pad_token_id=SPECIAL.index(PAD),
        bos_token_id=None,
        eos_token_id=SPECIAL.index(END),
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=SPECIAL.index(IMAGE),
        image_seq_length=GRID * GRID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    for name, weight in model.named_parameters():
        if name.endswith("patch_embedding.weight"):
            torch.nn.init.normal_(weight, std=0.05)  # CLIP's own start is too small to learn from
    return model


def processor() -> LlavaProcessor:
    """Tokenizer, image processor and chat template, as LLaVA's are."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_tokens(),
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=512,
    )
    tokenizer.chat_template = TEMPLATE
    images = CLIPImageProcessor(
        size={"height": PIXELS, "width": PIXELS},
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which the strategy leaves out
        image_token=IMAGE,
        chat_template=TEMPLATE,
    )


def _tokens() -> Tokenizer:
    """Byte-level BPE, merged until each word of the scenes' texts is one token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_corpus(), trainer)
    return core


def _corpus() -> list[str]:
    things = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
    captions = [f"There is {one}, {other} and {one}." for one in things for other in things[:6]]
    questions = [f"Is there {thing} in the image?" for thing in things]
    numbered = [
        f"\nImage{number}:\nIn Image{number}, {question[0].lower()}{question[1:]}"
        for number in range(1, 5)
        for question in DESCRIBE
    ]
    return [*captions, *questions, *DESCRIBE * 20, *numbered * 10, *["Yes.", "No."] * 20]
