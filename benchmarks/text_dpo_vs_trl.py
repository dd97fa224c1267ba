"""Pairs per second and peak memory of a DPO step of language models: mmalign against TRL.

    python benchmarks/text_dpo_vs_trl.py speed --layers 6
    python benchmarks/text_dpo_vs_trl.py memory --vocabulary 151936 --layers 6
    python benchmarks/text_dpo_vs_trl.py speed memory --shape llama-1b --precisions bfloat16

Both libraries run their own training loop, from the data loader to the optimiser's step, on the
same model (random weights), LoRA, batches and precision, with the reference computed on the fly by
switching the LoRA off, without gradient checkpointing and dropout. For speed both loops live in one
process and take turns step by step, so that whatever else the machine does meets both. For memory
each has a process of its own. Uses a GPU if there is one.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable
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
import torch
from torch import nn

LORA_RANK = 16

# hidden, intermediate, layers, heads, key-value heads, vocabulary; heads of 64, tied embeddings
SHAPES = {
    "smollm2-135m": (576, 1536, 30, 9, 3, 49_152),
    "smollm2-360m": (960, 2560, 32, 15, 5, 49_152),
    "llama-1b": (2048, 8192, 16, 32, 8, 128_256),
}


@dataclass(frozen=True)
class Case:
    """Tokens of a prompt, and of the shortest and the longest answer."""

    prompt: int
    shortest: int
    longest: int


CASES = {"short-prompt": Case(32, 64, 256), "long-prompt": Case(512, 64, 64)}


@dataclass(frozen=True)
class Setup:
    """What one measurement is made with. pairs: per optimiser step. trl_batch: pairs that TRL puts
    through the model at once, accumulating gradients over the rest."""

    shape: str
    layers: int | None
    vocabulary: int | None
    case: str
    precision: str
    pairs: int
    trl_batch: int
    trl_compact: bool
    repeats: int
    warmup: int = 2

    @property
    def steps(self) -> int:
        return self.warmup + self.repeats


def make_model(setup: Setup, folder: Path) -> None:
    """Random weights of a Llama, and a tokenizer in which every word is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    hidden, intermediate, layers, heads, kv_heads, vocabulary = SHAPES[setup.shape]
    vocabulary = setup.vocabulary or vocabulary
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=setup.layers or layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    dtype = getattr(torch, setup.precision)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    words = {"<s>": 0, "</s>": 1, "<pad>": 2} | {f"w{i}": i for i in range(3, vocabulary)}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)


def texts(setup: Setup) -> list[tuple[str, str, str]]:
    """Prompt, chosen and rejected of every pair of every step; an end token is added to answers."""
    case, draws = CASES[setup.case], random.Random(0)
    most = setup.vocabulary or SHAPES[setup.shape][-1]

    def words(count: int) -> str:
        return " ".join(f"w{draws.randrange(3, most)}" for _ in range(count))

    def reply() -> str:
        return " " + words(draws.randint(case.shortest, case.longest) - 1)

    return [(words(case.prompt), reply(), reply()) for _ in range(setup.steps * setup.pairs)]


def ours(setup: Setup, folder: Path, out: Path) -> tuple[Callable[[], Any], nn.Module, list[int]]:
    """The loop, its model, and the pairs in the order in which the steps see them."""
    from mmalign.adapters.text import load_text
    from mmalign.objectives import objective
    from mmalign.records import PLAIN, Message, Sample, Text, pair
    from mmalign.reference import AdapterOff
    from mmalign.training.batches import Plan, Steps
    from mmalign.training.loop import train
    from mmalign.training.options import TrainingOptions

    adapter = load_text(folder, lora={"r": LORA_RANK}, precision=setup.precision)

    def sample(prompt: str, answer: str) -> Sample:
        return Sample((Message(PLAIN, (Text(prompt),)),), (Text(answer),))

    data = [pair(sample(p, chosen), sample(p, rejected)) for p, chosen, rejected in texts(setup)]
    dpo = objective("dpo(beta=0.1)")
    options = TrainingOptions(
        steps=setup.steps, batch_size=setup.pairs, schedule="constant", warmup=0.0
    )
    # Tokenises everything, as TRL does in its constructor.
    plan = Plan(adapter.collate, adapter.size, dpo.needs, setup.pairs, options.micro_batch)
    place = {preference.id: i for i, preference in enumerate(data)}
    steps = Steps(data, plan)
    order = [
        place[name]
        for number in range(setup.steps)
        for micro in steps[number].micro_batches
        for name in micro.ids
    ]
    reference = AdapterOff(adapter)

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
    if setup.trl_compact:
        # What TRL does on a GPU, where its kernel is written in Triton: the head sees answers only.
        trl.trainer.utils._use_triton = lambda device: True
    pairs = texts(setup)
    rows = [dict(zip(("prompt", "chosen", "rejected"), pairs[i], strict=True)) for i in order]
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
        train_dataset=datasets.Dataset.from_list(rows),
        peft_config=LoraConfig(
            r=LORA_RANK,
            lora_alpha=2 * LORA_RANK,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    return trainer.train, trainer.model


def speed(setup: Setup, folder: Path, out: Path) -> dict[str, Any]:
    """Seconds per step of both, in turn."""
    run, _, order = ours(setup, folder, out)
    peer, _ = theirs(setup, folder, out, order)
    loops = Loop(run), Loop(peer)
    for _ in range(setup.warmup):
        for loop in loops:
            loop.step()
    before = matmul_rate(setup.precision)
    # Steps differ in length, and both see the same ones: ratios are taken step by step.
    mine, other = alternate(loops[0].step, loops[1].step, repeats=setup.repeats)
    for loop in loops:
        loop.close()
    rate = (before + matmul_rate(setup.precision)) / 2
    return {"mmalign": mine, "trl": other, "gflops": rate}


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
    mine, other = ([Seconds(*s) for s in found[name]] for name in ("mmalign", "trl"))
    rates = [setup.pairs / median(s.wall for s in seconds) for seconds in (mine, other)]
    walls = [b.wall / a.wall for a, b in zip(mine, other, strict=True)]
    processor = sum(s.processor for s in other) / sum(s.processor for s in mine)
    print(
        f"  {setup.case:12} {setup.precision:8}  mmalign {rates[0]:6.3f} pairs/s  "
        f"TRL {rates[1]:6.3f} pairs/s  ratio {median(walls):.2f} "
        f"({min(walls):.2f} to {max(walls):.2f}, {len(walls)} steps each)  "
        + ("" if CUDA else f"of processor time {processor:.2f}  ")
        + f"matmul {found['gflops']:.0f} GFLOP/s",
        flush=True,
    )


def show_memory(setup: Setup, found: dict[str, dict[str, Any]]) -> None:
    mine, other = (found[name]["growth"] / 2**20 for name in ("mmalign", "trl"))
    weights = found["mmalign"]["weights"] / 2**20
    print(
        f"  {setup.case:12} {setup.precision:8}  over the {weights:.0f} MiB of weights: "
        f"mmalign {mine:.0f} MiB  TRL {other:.0f} MiB  ratio {mine / other:.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["speed", "memory"])
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--vocabulary", type=int, help="tokens, in place of the shape's")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--pairs", type=int, default=4, help="per optimiser step")
    parser.add_argument("--trl-batch", type=int, help="pairs per pass of TRL's; all by default")
    parser.add_argument("--trl-compact", action="store_true", help="TRL's head as on a GPU")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        inside(*json.loads(given.inside))
    print(environment_line("torch", "transformers", "peft", "trl"), flush=True)
    print({k: v for k, v in vars(given).items() if k not in ("what", "inside")}, flush=True)
    for what in given.what:
        print(what)
        for precision in given.precisions:
            for case in given.cases:
                setup = Setup(
                    given.shape,
                    given.layers,
                    given.vocabulary,
                    case,
                    precision,
                    given.pairs,
                    given.trl_batch or given.pairs,
                    given.trl_compact,
                    given.repeats,
                )
                if what == "speed":
                    show_speed(setup, in_process(__file__, "speed", [asdict(setup), ""]))
                else:
                    setup = replace(setup, warmup=1, repeats=1)  # the second step has moments too
                    both = ("mmalign", "trl")
                    show_memory(
                        setup,
                        {
                            name: in_process(__file__, "memory", [asdict(setup), name])
                            for name in both
                        },
                    )


if __name__ == "__main__":
    main()
