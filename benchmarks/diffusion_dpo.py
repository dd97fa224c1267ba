"""Pairs per second and peak memory of Diffusion-DPO: mmalign against the published loop.

    python benchmarks/diffusion_dpo.py speed memory
    python benchmarks/diffusion_dpo.py speed memory --shape sdxl --precisions bfloat16 --repeats 20

The peer is the method of the public scripts, written out: every step opens both pictures, encodes
them with the VAE and the prompt with the text encoders, draws a timestep and a noise, and asks the
denoiser with its LoRA and a frozen second copy of it. mmalign runs its own training loop on the
same model (random weights), pictures, LoRA, batches and precision, in three ways:

    first    the first pass, in which the cache of VAE and text embeddings is filled
    later    a later pass, which reads that cache; VAE and text encoders have left memory
    cycle    a later pass with noises that repeat (--noise-cycle 1), so that the reference's errors
             are read as well

`count` says what one picture costs each part of a Stable Diffusion 1.5, by torch's count. The small
shape keeps the large one's ratio: encoding a picture costs about 1.4 passes of the UNet.

    python benchmarks/diffusion_dpo.py count --shape sd15
    python benchmarks/diffusion_dpo.py count --shape sd15-quarter

For speed peer and mmalign live in one process and take turns step by step; for memory each has a
process of its own. Uses a GPU if there is one.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
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
import numpy as np
import torch
from _diffusion_shapes import SHAPES, make_pipeline
from PIL import Image, ImageOps
from torch import Tensor, nn

LORA_RANK = 16
BETA = 5000.0
WAYS = ("first", "later", "cycle")


@dataclass(frozen=True)
class Setup:
    """What one measurement is made with. pairs: per optimiser step. way: one of `WAYS`."""

    shape: str
    resolution: int
    precision: str
    pairs: int
    repeats: int
    way: str
    warmup: int = 1

    @property
    def steps(self) -> int:
        return self.warmup + self.repeats


def pictures(setup: Setup) -> list[tuple[str, bytes, bytes]]:
    """Prompt, chosen and rejected of every pair of every step, as JPEG files a little too large."""
    random = np.random.default_rng(0)

    def jpeg() -> bytes:
        coarse = random.integers(0, 256, (16, 20, 3), dtype=np.uint8)
        size = (setup.resolution * 5 // 4, setup.resolution)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG")
        return buffer.getvalue()

    return [(f"picture {i} of noise", jpeg(), jpeg()) for i in range(setup.steps * setup.pairs)]


def ours(setup: Setup, folder: Path, out: Path) -> Callable[[], Any]:
    """mmalign's loop, with the caches that the way of going has."""
    from mmalign.adapters.diffusion import load_diffusion
    from mmalign.objectives import objective
    from mmalign.records import Media, Message, Sample, Text, pair
    from mmalign.reference import AdapterOff, Cached, weights_digest
    from mmalign.training.loop import train
    from mmalign.training.options import TrainingOptions

    adapter = load_diffusion(
        str(folder),
        lora={"r": LORA_RANK},
        precision=setup.precision,
        resolution=setup.resolution,
        prompt_dropout=0.0,
        latents="sample",
        cache=out / "cache",
    )

    def sample(prompt: str, content: bytes) -> Sample:
        asked = (Message("user", (Text(prompt),)),)
        return Sample(asked, (Media("image", data=content),))

    data = [pair(sample(p, chosen), sample(p, rejected)) for p, chosen, rejected in pictures(setup)]
    if setup.way != "first":
        for preference in data:
            adapter.fill_cache(preference.candidates)
        adapter.release_encoders()
    reference: Any = AdapterOff(adapter)
    options = TrainingOptions(
        steps=setup.steps,
        batch_size=setup.pairs,
        micro_batch=10**9,
        learning_rate=1e-5,
        schedule="constant",
        warmup=0.0,
        noise_cycle=int(setup.way == "cycle"),
    )
    loss = objective(f"dpo(beta={BETA})")
    if setup.way == "cycle":
        from mmalign.training.batches import Plan
        from mmalign.training.precompute import precompute

        scope = f"{weights_digest(adapter.policy, trained=False)} {adapter.fingerprint}"
        reference = Cached(out / "reference.sqlite", scope, reference, seeded=True)
        plan = Plan(adapter.collate, adapter.size, loss.needs, setup.pairs, 10**9, noise_cycle=1)
        precompute(reference, adapter, data, plan)

    def run() -> None:
        train(adapter, data, loss, options, out / "mmalign", reference=reference)

    return run


def theirs(setup: Setup, folder: Path, out: Path) -> Callable[[], Any]:
    """The published loop: nothing is kept between steps."""
    from diffusers import DiffusionPipeline
    from peft import LoraConfig

    dtype = getattr(torch, setup.precision)
    device = "cuda" if CUDA else "cpu"
    pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
    pipe.vae.to(device, torch.float32).requires_grad_(False)
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        if getattr(pipe, name, None) is not None:
            getattr(pipe, name).to(device).requires_grad_(False)
    flow = hasattr(pipe, "transformer")
    denoiser = (pipe.transformer if flow else pipe.unet).to(device).requires_grad_(False)
    frozen = copy.deepcopy(denoiser)
    config = LoraConfig(
        r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"]
    )
    denoiser.add_adapter(config)
    trained = [p for p in denoiser.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0)
    rows = pictures(setup)
    made = torch.Generator().manual_seed(0)

    def step(batch: list[tuple[str, bytes, bytes]]) -> None:
        files = [chosen for _, chosen, _ in batch] + [rejected for *_, rejected in batch]
        pixels = torch.stack([_pixels(file, setup.resolution) for file in files]).to(device)
        with torch.no_grad():
            latents = pipe.vae.encode(pixels).latent_dist.sample()
            shift = getattr(pipe.vae.config, "shift_factor", None) or 0.0
            latents = ((latents - shift) * pipe.vae.config.scaling_factor).to(dtype)
            text = _text(pipe, [prompt for prompt, *_ in batch], device)
        shape = (len(batch), *latents.shape[1:])
        noise = torch.randn(shape, generator=made).to(device, dtype).repeat(2, 1, 1, 1)
        if flow:
            sigma = torch.rand(len(batch), generator=made).repeat(2).to(device, dtype)
            wide = sigma.view(-1, 1, 1, 1)
            noisy, target, times = (
                (1 - wide) * latents + wide * noise,
                noise - latents,
                1000 * sigma,
            )
        else:
            times = torch.randint(0, 1000, (len(batch),), generator=made).repeat(2).to(device)
            noisy, target = pipe.scheduler.add_noise(latents, noise, times), noise

        def errors(model: nn.Module) -> Tensor:
            with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
                found = model(noisy, timestep=times, **text, return_dict=False)[0]
            return (found.float() - target.float()).square().flatten(1).mean(1)

        mine = errors(denoiser)
        with torch.no_grad():
            other = errors(frozen)
        chosen, rejected = (mine - other).chunk(2)
        loss = -nn.functional.logsigmoid(-0.5 * BETA * (chosen - rejected)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def run() -> None:
        for i in range(setup.steps):
            step(rows[i * setup.pairs : (i + 1) * setup.pairs])

    return run


def _pixels(file: bytes, side: int) -> Tensor:
    """(3 h w) in -1 .. 1: resized, cropped in the middle, normalised."""
    image = ImageOps.fit(Image.open(io.BytesIO(file)).convert("RGB"), (side, side))
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1


def _text(pipe: Any, prompts: list[str], device: str) -> dict[str, Any]:
    """What the denoiser is told about the prompts, for chosen and rejected."""
    kind = type(pipe).__name__
    if kind == "StableDiffusionPipeline":
        embeds, _ = pipe.encode_prompt(prompts, device, 1, False)
        return {"encoder_hidden_states": embeds.repeat(2, 1, 1)}
    if kind == "StableDiffusionXLPipeline":
        embeds, _, pooled, _ = pipe.encode_prompt(
            prompts, device=device, do_classifier_free_guidance=False
        )
        side = pipe.unet.config.sample_size * pipe.vae_scale_factor
        sizes = torch.tensor([[side, side, 0, 0, side, side]] * 2 * len(prompts), device=device)
        extra = {"text_embeds": pooled.repeat(2, 1), "time_ids": sizes.to(embeds.dtype)}
        return {"encoder_hidden_states": embeds.repeat(2, 1, 1), "added_cond_kwargs": extra}
    embeds, _, pooled, _ = pipe.encode_prompt(
        prompts, None, None, device=device, do_classifier_free_guidance=False
    )
    return {
        "encoder_hidden_states": embeds.repeat(2, 1, 1),
        "pooled_projections": pooled.repeat(2, 1),
    }


def speed(setup: Setup, folder: Path, out: Path) -> dict[str, Any]:
    """Seconds per step of both, in turn."""
    loops = Loop(ours(setup, folder, out)), Loop(theirs(setup, folder, out))
    for _ in range(setup.warmup):
        for loop in loops:
            loop.step()
    before = matmul_rate(setup.precision)
    mine, other = alternate(loops[0].step, loops[1].step, repeats=setup.repeats)
    for loop in loops:
        loop.close()
    rate = (before + matmul_rate(setup.precision)) / 2
    return {"mmalign": mine, "peer": other, "gflops": rate}


def flops(setup: Setup, folder: Path, out: Path, who: str) -> dict[str, Any]:
    """Multiplications and additions of one optimiser step, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    run = (ours if who == "mmalign" else theirs)(replace(setup, repeats=0), folder, out)
    with FlopCounterMode(display=False) as counter:
        run()
    return {"flops": counter.get_total_flops()}


def count_parts(shape: str, resolution: int) -> dict[str, float]:
    """Multiplications and additions of each part for one picture, without weights or results."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad():
        pipe = SHAPES[shape].make()
        side = resolution // pipe.vae_scale_factor
        text = torch.randn(1, 77, pipe.unet.config.cross_attention_dim)
        latent = torch.randn(1, pipe.unet.config.in_channels, side, side)
        calls = {
            "UNet": lambda: pipe.unet(latent, torch.zeros(1), text),
            "VAE encoder": lambda: pipe.vae.encode(torch.randn(1, 3, resolution, resolution)),
            "text encoder": lambda: pipe.text_encoder(torch.zeros(1, 77, dtype=torch.long)),
        }
        found = {}
        for name, call in calls.items():
            with FlopCounterMode(display=False) as counter:
                call()
            found[name] = float(counter.get_total_flops())
    return found


def memory(setup: Setup, folder: Path, out: Path, who: str) -> dict[str, Any]:
    """Bytes that weights and training take at their peak, in the steps themselves."""
    import diffusers  # noqa: F401  # its code is no part of what is compared
    import peft  # noqa: F401  # likewise
    import transformers  # noqa: F401  # likewise

    import mmalign.training.align  # noqa: F401  # likewise

    if who == "mmalign" and setup.way != "first":  # the cache was filled by an earlier run
        in_process(__file__, "fill", [asdict(setup), str(folder), str(out)])
    with peak_growth() as growth:
        loop = Loop((ours if who == "mmalign" else theirs)(setup, folder, out))
        for _ in range(setup.steps):
            loop.step()
    return {"growth": growth[0]}


def inside(kind: str, given: list[Any]) -> None:
    options, *rest = given
    setup = Setup(**options)
    if kind == "make":
        make_pipeline(setup.shape, setup.precision, Path(rest[0]))
        answer({})
    if kind == "fill":
        ours(setup, Path(rest[0]), Path(rest[1]))
        answer({})
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        # Made in a process of its own, so that its memory is not counted here.
        in_process(__file__, "make", [asdict(setup), str(out / "model")])
        if kind != "flops":
            pause_after_steps()
        match kind:
            case "speed":
                found = speed(setup, out / "model", out)
            case "memory":
                found = memory(setup, out / "model", out, rest[0])
            case "flops":
                found = flops(setup, out / "model", out, rest[0])
    answer(found)


def show_speed(setup: Setup, found: dict[str, Any], counted: dict[str, float], peak: float) -> None:
    mine, other = ([Seconds(*s) for s in found[name]] for name in ("mmalign", "peer"))
    rates = [setup.pairs / median(s.wall for s in seconds) for seconds in (mine, other)]
    walls = [b.wall / a.wall for a, b in zip(mine, other, strict=True)]
    processor = sum(s.processor for s in other) / sum(s.processor for s in mine)
    print(
        f"  {setup.precision:8} {setup.way:6}  mmalign {rates[0]:6.3f} pairs/s  "
        f"peer {rates[1]:6.3f} pairs/s  ratio {median(walls):.2f} "
        f"({min(walls):.2f} to {max(walls):.2f}, {len(walls)} steps each)  "
        + ("" if CUDA else f"of processor time {processor:.2f}  ")
        + f"by the count of operations {counted['peer'] / counted['mmalign']:.2f}  "
        + "".join(
            f"{name}: {counted[name] / setup.pairs * rate / peak / 1e12:.0%} of the peak  "
            for name, rate in zip(("mmalign", "peer"), rates, strict=True)
            if peak
        )
        + f"matmul {found['gflops']:.0f} GFLOP/s",
        flush=True,
    )


def show_memory(setup: Setup, mine: float, other: float) -> None:
    print(
        f"  {setup.precision:8} {setup.way:6}  mmalign {mine / 2**20:.0f} MiB  "
        f"peer {other / 2**20:.0f} MiB  ratio {mine / other:.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["speed", "memory"])
    parser.add_argument("--shape", choices=SHAPES, default="sd15-quarter")
    parser.add_argument("--resolution", type=int, help="pixels; the shape's own by default")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--precisions", nargs="+", default=["float32"])
    parser.add_argument("--pairs", type=int, default=1, help="per optimiser step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="to print utilisation")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        inside(*json.loads(given.inside))
    print(environment_line("torch", "diffusers", "transformers", "peft"), flush=True)
    print({k: v for k, v in vars(given).items() if k not in ("what", "inside")}, flush=True)
    for what in given.what:
        print(what)
        for precision in given.precisions:
            resolution = given.resolution or SHAPES[given.shape].resolution
            if what == "count":
                found = count_parts(given.shape, resolution)
                parts = ", ".join(f"{name} {flops / 1e9:.1f}" for name, flops in found.items())
                print(f"  {resolution} pixels, GFLOP: {parts}")
                continue
            setup = Setup(given.shape, resolution, precision, given.pairs, given.repeats, "first")
            compare(setup, what, given.ways, given.peak_tflops)


def compare(setup: Setup, what: str, ways: list[str], peak: float) -> None:
    def told(kind: str, way: str, who: str) -> Any:
        return in_process(__file__, kind, [asdict(replace(setup, way=way)), who])

    if what == "speed":
        peer = told("flops", "first", "peer")["flops"]
        for way in ways:
            counted = {"mmalign": told("flops", way, "mmalign")["flops"], "peer": peer}
            show_speed(replace(setup, way=way), told("speed", way, ""), counted, peak)
        return
    setup = replace(setup, repeats=1)  # the second step has moments too
    other = told("memory", "first", "peer")["growth"]
    for way in ways:
        show_memory(replace(setup, way=way), told("memory", way, "mmalign")["growth"], other)


if __name__ == "__main__":
    main()
