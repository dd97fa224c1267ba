"""A Janus of two million weights that draws two coloured shapes, and how it was made.

Its classes and files are those of any Janus in transformers. Its checkpoint comes with mmalign
(`TINY_JANUS`); `python -m mmalign.playground.tiny_janus FOLDER` makes it from nothing in eleven
minutes of one core: the image tokenizer first, then the generator, on drawings with captions that
are now and then careless. It draws what was asked for in three of five pictures of combinations
that it was trained on, and in one of three of others.
Axes: n pictures, m vectors, d dimensions of a code.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVQVAE,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from mmalign.adapters.autoregressive import Tokens
from mmalign.adapters.image_tokens import ImageTokenAdapter, load_image_tokens
from mmalign.adapters.image_tokens.collate import Drawn
from mmalign.files import whole_folder
from mmalign.playground.relations import (
    PALETTE,
    RELATIONS,
    SHAPES,
    SIDE,
    careless_caption,
    draw,
    prompts,
)
from mmalign.records import Message, Text
from mmalign.training.log import console
from mmalign.training.seeds import derive

TINY_JANUS = Path(__file__).parent / "tiny-janus"
"""The folder of the checkpoint that comes with mmalign."""

CARELESSNESS = 0.1  # how often an annotator mixes up colours or sides
UNTOLD = 0.1  # how often a picture is learnt without its caption, so that guidance works
PICTURES = 20_000
WARM_UP_STEPS, TOKENIZER_STEPS, TOKENIZER_BATCH = 150, 600, 32
GENERATOR_STEPS, GENERATOR_BATCH = 2000, 64
STRIDE, CODES, WIDTH = 4, 192, 128
GRID = SIDE // STRIDE
SPECIAL = ["<s>", "</s>", "<pad>", "<image>", "<boi>", "<eoi>", "<unk>"]
TEMPLATE = "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"


def train(folder: Path, *, seed: int = 0) -> None:
    """Train into `folder`: the image tokenizer, then the generator, on prompts of "train" only."""
    with TemporaryDirectory() as scratch, torch.random.fork_rng():
        torch.manual_seed(derive(seed, "tiny janus"))
        model, processor = random_janus()
        pixels, told = _pictures(seed)
        _train_tokenizer(model.model.vqmodel, pixels / 127.5 - 1)
        model.save_pretrained(scratch)
        processor.save_pretrained(scratch)
        adapter = load_image_tokens(scratch)
        adapter.packed = False  # pictures that share no prompt
        _train_generator(adapter, pixels, told)
        with whole_folder(folder) as partial:
            # silenced: nn.Module types attributes as tensors
            adapter.policy.half().save_pretrained(partial)  # type: ignore[operator]
            processor.save_pretrained(partial)


def random_janus() -> tuple[JanusForConditionalGeneration, JanusProcessor]:
    """The part of a Janus that reads pictures is as small as can be: nobody asks it anything."""
    words = _tokenizer()
    model = JanusForConditionalGeneration(
        JanusConfig(
            text_config={
                "model_type": "llama",
                "vocab_size": len(words),
                "hidden_size": WIDTH,
                "intermediate_size": 3 * WIDTH,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "max_position_embeddings": 64,
                "bos_token_id": words.bos_token_id,
                "eos_token_id": words.eos_token_id,
                "pad_token_id": words.pad_token_id,
            },
            vision_config={
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": SIDE,
                "patch_size": STRIDE,
                "mlp_ratio": 1,
                "projection_dim": WIDTH,
                "num_image_tokens": GRID**2,
            },
            vq_config={
                "base_channels": 32,
                "channel_multiplier": [1, 2, 2],
                "num_res_blocks": 1,
                "latent_channels": 64,
                "double_latent": False,
                "embed_dim": 8,
                "num_embeddings": CODES,
                "num_patches": GRID,
                "projection_dim": WIDTH,
                "image_token_embed_dim": WIDTH,
            },
            image_token_id=words.convert_tokens_to_ids("<image>"),
        )
    )
    model.generation_config.bos_token_id = words.bos_token_id
    model.generation_config.pad_token_id = words.pad_token_id
    model.generation_config.generation_kwargs = {
        "boi_token_id": words.convert_tokens_to_ids("<boi>")
    }
    pictures = JanusImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, min_size=STRIDE,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    processor = JanusProcessor(pictures, words, chat_template=TEMPLATE, num_image_tokens=GRID**2)
    return model, processor


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word."""
    words = sorted({"a", *PALETTE, *SHAPES, *" ".join(RELATIONS).split()})
    ids = {word: number for number, word in enumerate([*SPECIAL, *words])}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=names,
    )


def _pictures(seed: int) -> tuple[Tensor, list[str]]:
    """(n 3 side side) bytes, and what annotators wrote about them."""
    hand = random.Random(f"tiny janus {seed}")
    asked = prompts("train", seed=seed)
    chosen = [hand.choice(asked) for _ in range(PICTURES)]
    drawn = torch.stack([torch.from_numpy(draw(one, hand)) for one in chosen])
    told = [careless_caption(one, hand, carelessness=CARELESSNESS).text for one in chosen]
    return drawn.permute(0, 3, 1, 2).contiguous(), told


def _train_tokenizer(vq: JanusVQVAE, pixels: Tensor) -> None:
    """Vectors and codes have length 1, as Janus's decoder takes them. Without codes at first; then
    the vectors that are least alike become the codes."""
    vq.requires_grad_(True)
    optimizer = torch.optim.AdamW(vq.parameters(), lr=2e-3, weight_decay=0.0)
    codebook = vq.quantize.embedding.weight
    steps = WARM_UP_STEPS + TOKENIZER_STEPS
    batches = _batches("tokenizer", len(pixels), steps, TOKENIZER_BATCH, optimizer)
    for step, picked in enumerate(batches):
        if step == WARM_UP_STEPS:
            with torch.no_grad():
                codebook.copy_(_unlike(_vectors(vq, pixels[:2000]).flatten(0, 2), CODES))
        vectors = _vectors(vq, pixels[picked])
        loss = vectors.new_zeros(())
        if step >= WARM_UP_STEPS:
            codes = F.normalize(codebook, dim=-1)
            nearest = codes[(vectors.detach() @ codes.T).argmax(-1)]
            loss = F.mse_loss(nearest, vectors.detach()) + 0.25 * F.mse_loss(
                nearest.detach(), vectors
            )
            vectors = vectors + (nearest - vectors).detach()
        found = vq.decoder(vq.post_quant_conv(vectors.permute(0, 3, 1, 2)))
        (F.mse_loss(found, pixels[picked]) + loss).backward()
        nn.utils.clip_grad_norm_(vq.parameters(), 1.0)
    vq.requires_grad_(False)


def _vectors(vq: JanusVQVAE, pixels: Tensor) -> Tensor:
    """(n rows columns d), of length 1."""
    return F.normalize(vq.quant_conv(vq.encoder(pixels)).permute(0, 2, 3, 1), dim=-1)


def _unlike(vectors: Tensor, count: int) -> Tensor:
    """(count d) of vectors (m d): each the one that is least like those before it."""
    chosen = [vectors[0]]
    likeness = vectors @ chosen[0]
    for _ in range(count - 1):
        chosen.append(vectors[likeness.argmin()])
        likeness = likeness.maximum(vectors @ chosen[-1])
    return torch.stack(chosen)


def _train_generator(adapter: ImageTokenAdapter, pixels: Tensor, told: list[str]) -> None:
    """By the likelihood of the codes; one picture in ten goes without its caption."""
    codes = _codes(adapter, pixels)
    collator = adapter.collator
    known = {text: collator.prompt_ids(_prompt(text)) + collator.opening for text in set(told)}
    optimizer = torch.optim.AdamW(
        [weight for weight in adapter.policy.parameters() if weight.requires_grad],
        lr=2e-3, betas=(0.9, 0.98), weight_decay=0.05,
    )  # fmt: skip
    hand = random.Random("untold")
    batches = _batches("generator", len(pixels), GENERATOR_STEPS, GENERATOR_BATCH, optimizer)
    for picked in batches:
        drawn = []
        for index in picked.tolist():
            ids, scored = collator.image_ids(codes[index].tolist())
            prompt = tuple(known[told[index]])
            if hand.random() < UNTOLD:
                prompt = collator.unconditional(prompt)
            drawn.append(Drawn(Tokens(prompt, tuple(ids), (1.0,) * len(ids)), tuple(scored)))
        scores = adapter.log_probs(adapter.policy, adapter.encode({"drawn": drawn})).log_probs
        (-scores.mean() / GRID**2).backward()
        nn.utils.clip_grad_norm_(adapter.policy.parameters(), 1.0)


@torch.no_grad()
def _codes(adapter: ImageTokenAdapter, pixels: Tensor) -> Tensor:
    """(n rows columns) codes of all pictures."""
    found = [
        adapter.family.to_codes(adapter.policy, adapter.pixels.normalised(some))
        for some in pixels.split(500)
    ]
    return torch.cat(found)


def _prompt(text: str) -> tuple[Message, ...]:
    return (Message("user", (Text(text),)),)


def _batches(
    what: str, rows: int, steps: int, size: int, optimizer: torch.optim.Optimizer
) -> Iterator[Tensor]:
    """Rows to take a gradient of; the optimiser steps when the next ones are asked for."""
    began, rate = time.perf_counter(), optimizer.param_groups[0]["lr"]
    for step in range(steps):
        warm = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (0.525 + 0.475 * math.cos(math.pi * step / steps))
        yield torch.randint(0, rows, (size,))
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            seconds = time.perf_counter() - began
            console.print(f"{what}: {step + 1} of {steps} steps in {seconds:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    train(parser.parse_args().folder)
