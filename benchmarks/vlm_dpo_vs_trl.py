"""Pairs per second and peak memory of a DPO step of vision-language models: mmalign against TRL.

    python benchmarks/vlm_dpo_vs_trl.py speed memory
    python benchmarks/vlm_dpo_vs_trl.py speed memory --ways cached --repeats 7
    python benchmarks/vlm_dpo_vs_trl.py speed memory --device cuda --size llava-7b
    python benchmarks/vlm_dpo_vs_trl.py speed memory --device cuda --size qwen2.5-vl-7b

Both libraries run their own training loop, from the data loader to the optimiser's step, on the
same model (random weights), LoRA on the language model, images, answers and precision, without
gradient checkpointing and dropout. One image a pair, no image twice. Ways: "fly" computes reference
and image features in every step, as TRL does; "cached" has them on disk. For speed both loops live
in one process and take turns step by step; for memory each has a process of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from _turns import (
    CUDA,
    Loop,
    Seconds,
    alternate,
    answer,
    environment_line,
    in_process,
    matmul_rate,
    pause_after_steps,
    peak_growth,
)

# What is above prepares the environment, and has to come before torch.
# isort: split
import numpy as np
import torch
from PIL import Image
from torch import nn

LORA_RANK = 16
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LANGUAGE = rf".*language_model.*({'|'.join(LAYERS)})"
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bfloat16 FLOP/s of a device, by what its name holds."""


@dataclass(frozen=True)
class Size:
    """Of the language model: hidden, intermediate, layers, heads, key-value heads, vocabulary. Of
    the tower the same but the last two. side: of images, in pixels."""

    family: str
    language: tuple[int, int, int, int, int, int]
    tower: tuple[int, int, int, int]
    side: int = 336


SIZES = {
    # LLaVA-1.5-7B's proportions of tower (4.5 %) and vocabulary (2 %), at its 576 image tokens.
    "small": Size("llava", (512, 1376, 8, 8, 8, 1000), (192, 512, 3, 4)),
    "tiny": Size("llava", (64, 96, 2, 2, 2, 300), (32, 64, 2, 2), side=56),
    "tiny-qwen": Size("qwen2_5_vl", (64, 96, 2, 2, 2, 300), (32, 64, 2, 2), side=56),
    "llava-7b": Size("llava", (4096, 11008, 32, 32, 32, 32064), (1024, 4096, 24, 16)),
    "qwen2.5-vl-7b": Size(
        "qwen2_5_vl", (3584, 18944, 28, 28, 4, 152064), (1280, 3420, 32, 16), side=672
    ),
}


@dataclass(frozen=True)
class Setup:
    """What one measurement is made with. prompt, answers: tokens of the question, and of the
    shortest and the longest answer. pairs: per optimiser step."""

    size: str
    precision: str
    way: str
    prompt: int
    shortest: int
    longest: int
    pairs: int
    trl_batch: int
    repeats: int
    warmup: int = 2

    @property
    def steps(self) -> int:
        return self.warmup + self.repeats


MARKS = {"llava": "<image>", "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>"}
CHAT = (
    "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}MARK "
    "{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{% if m.role == 'assistant' %} </s>{% endif %}{% endfor %}"
)


def coder(vocabulary: int) -> Any:
    """A tokenizer in which every word is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<pad>", "<image>", *QWEN]
    words = [*special, *(f"w{i}" for i in range(len(special), vocabulary))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    made.add_special_tokens({"additional_special_tokens": special[3:]})
    return made


QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def make_model(setup: Setup, folder: Path) -> None:
    """Random weights and the family's own processor."""
    size = SIZES[setup.size]
    config, processor = (llava if size.family == "llava" else qwen)(size)
    processor.chat_template = CHAT.replace("MARK", MARKS[size.family])
    torch.manual_seed(0)
    from transformers import AutoModelForImageTextToText

    with torch.device("cuda" if CUDA else "cpu"):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=getattr(torch, setup.precision)
        )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def language(size: Size) -> dict[str, Any]:
    hidden, intermediate, layers, heads, kv_heads, vocabulary = size.language
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }


def llava(size: Size) -> tuple[Any, Any]:
    import transformers as t

    hidden, intermediate, layers, heads = size.tower
    words, grid = coder(size.language[-1]), size.side // 14
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            image_size=size.side,
            patch_size=14,
        ),
        text_config=t.LlamaConfig(**language(size)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=grid**2,
    )
    crop = {"height": size.side, "width": size.side}
    processor = t.LlavaProcessor(
        t.CLIPImageProcessor(size={"shortest_edge": size.side}, crop_size=crop),
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return config, processor


def qwen(size: Size) -> tuple[Any, Any]:
    import transformers as t

    hidden, intermediate, layers, heads = size.tower
    words = coder(size.language[-1])
    start, end, image, video = words.convert_tokens_to_ids(list(QWEN))
    third = size.language[0] // size.language[3] // 2
    sections = [third - 2 * (3 * third // 8), 3 * third // 8, 3 * third // 8]
    config = t.Qwen2_5_VLConfig(
        vision_config={
            "depth": layers,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_heads": heads,
            "out_hidden_size": size.language[0],
            "fullatt_block_indexes": list(range(layers // 4 - 1, layers, max(1, layers // 4)))
            if layers >= 4
            else [layers - 1],
        },
        text_config={
            **language(size),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": sections,
            },
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    processor = t.Qwen2_5_VLProcessor(t.Qwen2VLImageProcessor(), words, t.Qwen2VLVideoProcessor())
    return config, processor


@dataclass(frozen=True)
class Pair:
    image: bytes
    prompt: str
    chosen: str
    rejected: str


def pairs(setup: Setup) -> list[Pair]:
    """Of every step; the answers' lengths are without the token that ends them."""
    size, draws, noise = SIZES[setup.size], random.Random(0), np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join(f"w{draws.randrange(20, size.language[-1])}" for _ in range(count))

    def picture() -> bytes:
        coarse = Image.fromarray(noise.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((size.side, size.side)).save(buffer, "PNG")
        return buffer.getvalue()

    def reply() -> str:
        return " " + words(draws.randint(setup.shortest, setup.longest) - 1)

    return [
        Pair(picture(), words(setup.prompt), reply(), reply())
        for _ in range(setup.steps * setup.pairs)
    ]


def ours(setup: Setup, folder: Path, out: Path) -> tuple[Callable[[], Any], nn.Module, list[int]]:
    """The loop, its model, and the pairs in the order in which the steps see them."""
    from mmalign.adapters.vision_language import load_vision_language
    from mmalign.objectives import objective
    from mmalign.records import Media, Message, Sample, Text, pair
    from mmalign.reference import AdapterOff, AsItIs, Cached
    from mmalign.training.batches import Plan, Steps
    from mmalign.training.loop import train
    from mmalign.training.options import TrainingOptions
    from mmalign.training.precompute import precompute

    cached = setup.way == "cached"
    adapter = load_vision_language(
        folder,
        lora={"r": LORA_RANK},
        precision=setup.precision,
        feature_cache=out / "features" if cached else None,
    )

    def sample(one: Pair, said: str) -> Sample:
        shown = (Media("image", data=one.image), Text(one.prompt))
        return Sample((Message("user", shown),), (Text(said),))

    data = [pair(sample(p, p.chosen), sample(p, p.rejected)) for p in pairs(setup)]
    dpo = objective("dpo(beta=0.1)")
    options = TrainingOptions(
        steps=setup.steps,
        batch_size=setup.pairs,
        micro_batch=10**9,  # a step at once, as TRL does
        schedule="constant",
        warmup=0.0,
    )
    plan = Plan(adapter.collate, adapter.size, dpo.needs, setup.pairs, options.micro_batch)
    place = {preference.id: i for i, preference in enumerate(data)}
    steps = Steps(data, plan)
    order = [
        place[name]
        for number in range(setup.steps)
        for micro in steps[number].micro_batches
        for name in micro.ids
    ]
    reference: Any = AdapterOff(adapter)
    if cached:
        reference = Cached(out / "reference.sqlite", "this", AsItIs(adapter), seeded=False)
        precompute(reference, adapter, data, replace(plan, budget=4096))
        reference.inner = None

    def run() -> None:
        train(adapter, data, dpo, options, out / "mmalign", reference=reference)

    return run, adapter.policy, order


def theirs(
    setup: Setup, folder: Path, out: Path, order: list[int]
) -> tuple[Callable[[], Any], nn.Module]:
    """TRL's loop and its model."""
    import datasets
    import transformers
    import trl
    from peft import LoraConfig

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    every = pairs(setup)

    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = [
        {
            "images": [{"bytes": every[i].image, "path": None}],
            "prompt": said("user", every[i].prompt),
            "chosen": said("assistant", every[i].chosen),
            "rejected": said("assistant", every[i].rejected),
        }
        for i in order
    ]
    dataset = datasets.Dataset.from_list(rows).cast_column(
        "images", datasets.List(datasets.Image())
    )
    trainer = trl.DPOTrainer(
        model=str(folder),
        args=trl.DPOConfig(
            str(out / "trl"),
            beta=0.1,
            per_device_train_batch_size=setup.trl_batch,
            gradient_accumulation_steps=setup.pairs // setup.trl_batch,
            max_steps=setup.steps,
            max_length=None,
            learning_rate=5e-6,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            bf16=setup.precision == "bfloat16",
            model_init_kwargs={"dtype": setup.precision},
            use_cpu=not CUDA,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=10_000,
        ),
        train_dataset=dataset,
        peft_config=LoraConfig(
            r=LORA_RANK,
            lora_alpha=2 * LORA_RANK,
            target_modules=LANGUAGE,
            task_type="CAUSAL_LM",
        ),
    )
    return trainer.train, trainer.model


@contextmanager
def encodings(model: nn.Module) -> Iterator[list[int]]:
    """How many images the model's tower was given inside, call by call."""
    tower = next(m for n, m in model.named_modules() if n.endswith((".vision_tower", ".visual")))
    seen: list[int] = []

    def count(module: nn.Module, args: Any, kwargs: Any) -> None:
        grid = kwargs.get("grid_thw")
        pixels = args[0] if args else kwargs["pixel_values"]
        seen.append(len(pixels if grid is None else grid))

    handle = tower.register_forward_pre_hook(count, with_kwargs=True)
    yield seen
    handle.remove()


def speed(setup: Setup, folder: Path, out: Path) -> dict[str, Any]:
    """Seconds per step of both, in turn, and images that the towers were given in each step."""
    run, mine, order = ours(setup, folder, out)
    peer, other = theirs(setup, folder, out, order)
    loops = Loop(run), Loop(peer)
    for _ in range(setup.warmup):
        for loop in loops:
            loop.step()
    before = matmul_rate(setup.precision)
    with encodings(mine) as by_us, encodings(other) as by_them:
        seconds = alternate(loops[0].step, loops[1].step, repeats=setup.repeats)
    for loop in loops:
        loop.close()
    return {
        "seconds": seconds,
        "images": [sum(seen) / setup.repeats for seen in (by_us, by_them)],
        "gflops": (before + matmul_rate(setup.precision)) / 2,
        "parameters": parameters(mine),
        "image_tokens": image_tokens(SIZES[setup.size]),
    }


def memory(setup: Setup, folder: Path, out: Path, library: str) -> dict[str, Any]:
    """Bytes of the loaded model, and of what training takes beyond it at its peak."""
    run, model, order = ours(setup, folder, out)
    if library == "trl":
        del run, model
        run, model = theirs(setup, folder, out, order)
    for parameter in model.parameters():
        parameter.sum()  # weights may be mapped from disk and come into memory at first use
    with peak_growth() as growth:
        loop = Loop(run)
        for _ in range(setup.steps):
            loop.step()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {"growth": growth[0], "weights": weights}


def parameters(model: nn.Module) -> int:
    """Of the language model's layers, which every token passes."""
    return sum(
        p.numel()
        for n, p in model.named_parameters()
        if "language_model" in n and "embed" not in n and "lora" not in n
    )


def image_tokens(size: Size) -> int:
    return (size.side // 14) ** 2 // (4 if size.family == "qwen2_5_vl" else 1)


def inside(kind: str, given: list[Any]) -> None:
    options, library = given
    setup = Setup(**options)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        make_model(setup, out / "model")
        pause_after_steps()
        if kind == "speed":
            answer(speed(setup, out / "model", out))
        answer(memory(setup, out / "model", out, library))


def show_speed(setup: Setup, found: dict[str, Any]) -> None:
    mine, other = ([Seconds(*s) for s in seconds] for seconds in found["seconds"])
    rates = [setup.pairs / median(s.wall for s in seconds) for seconds in (mine, other)]
    walls = [b.wall / a.wall for a, b in zip(mine, other, strict=True)]
    processor = sum(s.processor for s in other) / sum(s.processor for s in mine)
    images = found["images"]
    print(
        f"  {setup.way:6} {setup.precision:8}  mmalign {rates[0]:6.3f} pairs/s  "
        f"TRL {rates[1]:6.3f} pairs/s  ratio {median(walls):.2f} "
        f"({min(walls):.2f} to {max(walls):.2f}, {len(walls)} steps each)  "
        + ("" if CUDA else f"of processor time {processor:.2f}  ")
        + f"images encoded per step: mmalign {images[0]:g}, TRL {images[1]:g}, "
        f"of {setup.pairs}  matmul {found['gflops']:.0f} GFLOP/s",
        flush=True,
    )
    if CUDA:
        show_utilisation(setup, found, rates)


def show_utilisation(setup: Setup, found: dict[str, Any], rates: list[float]) -> None:
    """Of the device's peak, by one count for both: two separate rows for a pair, each through
    policy and reference once and back once, 2 FLOP a weight and token; no attention, no tower."""
    name = torch.cuda.get_device_name()
    peak = next((flops for part, flops in PEAK.items() if part in name), None)
    row = found["image_tokens"] + setup.prompt + (setup.shortest + setup.longest) / 2
    flops = 3 * 2 * found["parameters"] * 2 * row
    for library, rate in zip(("mmalign", "TRL"), rates, strict=True):
        used = "unknown peak" if peak is None else f"{rate * flops / peak:.1%} of peak"
        print(f"    {library:8} {rate * 2 * row:9.0f} tokens/s  {used}", flush=True)


def show_memory(setup: Setup, found: dict[str, dict[str, Any]]) -> None:
    mine, other = (found[name]["growth"] / 2**20 for name in ("mmalign", "trl"))
    weights = found["mmalign"]["weights"] / 2**20
    print(
        f"  {setup.way:6} {setup.precision:8}  over the {weights:.0f} MiB of weights: "
        f"mmalign {mine:.0f} MiB  TRL {other:.0f} MiB  ratio {mine / other:.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["speed", "memory"])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", choices=("auto", "cuda"), default="auto")
    parser.add_argument("--ways", nargs="+", choices=("fly", "cached"), default=["fly", "cached"])
    parser.add_argument("--precision", help="bfloat16 on a GPU, float32 on a CPU by default")
    parser.add_argument("--prompt", type=int, default=40, help="tokens of the question")
    parser.add_argument("--answers", type=int, nargs=2, default=(40, 80), metavar=("LEAST", "MOST"))
    parser.add_argument("--pairs", type=int, default=2, help="per optimiser step")
    parser.add_argument("--trl-batch", type=int, help="pairs per pass of TRL's; all by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        inside(*json.loads(given.inside))
    if given.device == "cuda" and not CUDA:
        parser.error("there is no GPU that torch can use")
    print(environment_line("torch", "transformers", "peft", "trl"), flush=True)
    print({k: v for k, v in vars(given).items() if k not in ("what", "inside")}, flush=True)
    for what in given.what:
        print(what)
        for way in given.ways:
            setup = Setup(
                given.size,
                given.precision or ("bfloat16" if CUDA else "float32"),
                way,
                given.prompt,
                *given.answers,
                given.pairs,
                given.trl_batch or given.pairs,
                given.repeats,
            )
            if what == "speed":
                show_speed(setup, in_process(__file__, "speed", [asdict(setup), ""]))
            else:
                setup = replace(setup, warmup=1, repeats=1)  # the second step has moments too
                both = ("mmalign", "trl")
                found = {
                    name: in_process(__file__, "memory", [asdict(setup), name]) for name in both
                }
                show_memory(setup, found)


if __name__ == "__main__":
    main()
