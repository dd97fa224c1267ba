"""Probing the attention of an answer to images, against transformers' output_attentions=True.

    python benchmarks/attention.py                          # a small Llama, on the CPU
    python benchmarks/attention.py --shape llava-1.5-7b     # on a GPU, bfloat16

One teacher-forced pass over images, question and answer, in a fresh process for each way: without
looking at attention, with `mmalign.attention.probing`, with output_attentions=True. Counted are
the memory in use at the peak beyond the weights, and the processor's (on a GPU: the wall's)
seconds. Both measure the same: that is checked before anything is printed. The language model
alone, with random weights: the vision tower is not looked at and costs the same in all ways.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from _turns import CUDA, answer, environment_line, in_process, peak_growth

# What is above prepares the environment, and has to come before torch.
# isort: split
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mmalign.attention import image_layer, probing

SHAPES: dict[str, dict[str, int]] = {
    "small": {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "vocab_size": 1000,
    },
    "llava-1.5-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32064,
    },
}
WAYS = ("plain", "probing", "output_attentions")
IMAGE = 576  # tokens, as LLaVA-1.5 has


def measured(way: str, given: dict[str, Any]) -> dict[str, Any]:
    """Peak memory in bytes, seconds, and the mean attention (m) on each image."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if CUDA else torch.float32
    config = LlamaConfig(**SHAPES[given["shape"]], attn_implementation="sdpa")
    with torch.device("cuda" if CUDA else "cpu"):
        model = LlamaForCausalLM(config).to(dtype).eval()
    if way == "output_attentions":
        model.set_attn_implementation("eager")
    prompt = given["images"] * IMAGE + given["question"]
    columns = prompt + given["answer"]
    ids = torch.randint(3, 900, (1, columns), device=model.device)
    layer = image_layer(model)
    queries = torch.arange(prompt, columns - 1, device=model.device)
    warm_up = ids[:, :64]
    with torch.no_grad():
        model(input_ids=warm_up, logits_to_keep=1)
        with peak_growth() as growth:
            began = seconds()
            found = attention(way, model, ids, queries, layer, given["images"])
            took = seconds() - began
    return {"bytes": growth[0], "seconds": took, "attention": found}


def attention(
    way: str, model: LlamaForCausalLM, ids: Tensor, queries: Tensor, layer: int, images: int
) -> list[float] | None:
    if way == "plain":
        model(input_ids=ids, logits_to_keep=1)
        return None
    if way == "output_attentions":
        weights = model(input_ids=ids, logits_to_keep=1, output_attentions=True).attentions[layer]
        on_columns = weights[0, :, queries].float().mean((0, 1))
        return [float(on_columns[i * IMAGE : (i + 1) * IMAGE].sum()) for i in range(images)]
    groups = torch.zeros(1, ids.shape[1], images)
    for number in range(images):
        groups[0, number * IMAGE : (number + 1) * IMAGE, number] = 1
    with probing(model, queries[None], groups, layers=[layer]) as probe:
        model(input_ids=ids, logits_to_keep=1)
    masses: list[float] = probe.mean_mass(layer)[0].tolist()
    return masses


def seconds() -> float:
    if CUDA:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--question", type=int, default=48, help="tokens")
    parser.add_argument("--answer", type=int, default=128, help="tokens")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        answer(measured(*json.loads(options.inside)))
    print(environment_line("torch", "transformers"))
    for images in options.images:
        given = {**vars(options), "images": images}
        found = {way: in_process(sys.argv[0], way, given) for way in WAYS}
        ours, theirs = (torch.tensor(found[way]["attention"]) for way in WAYS[1:])
        torch.testing.assert_close(ours, theirs, rtol=2e-2 if CUDA else 1e-4, atol=1e-6)
        shown = "; ".join(
            f"{way} {found[way]['bytes'] / 2**20:.0f} MiB {found[way]['seconds']:.2f} s"
            for way in WAYS
        )
        ratio = found["probing"]["bytes"] / found["output_attentions"]["bytes"]
        print(f"{images} images: {shown}; peak memory, ours to theirs: {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
