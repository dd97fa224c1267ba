"""Each family against its own pipeline: how denoiser and VAE are called.

The pipeline is run for one step with the denoiser spied upon. Nothing is recomputed here by our own
formulas: packing, positions, timestep scales, masks and embeddings come from the library.
"""

from __future__ import annotations

import inspect
import io
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from tiny_diffusion import FAMILIES, SIDE, VIDEO, adapter, picture, sample, samples
from tiny_pipelines import tiny
from torch import Tensor, nn

from mmalign.adapters.diffusion import DiffusionAdapter
from mmalign.adapters.diffusion.family import text_options
from mmalign.adapters.diffusion.targets import Process, process_of
from mmalign.errors import UserError

GUIDANCE: dict[str, float | None] = {
    "flux": 3.5,
    "hunyuan_video": 3.5,
    "z_image": 0.0,
    "qwen_image": None,
}
"""Without a second, unconditional call of the denoiser; 1 elsewhere."""

PROMPT = "a red cat"


@cache
def wide(name: str) -> DiffusionAdapter:
    """Height and width that differ, so that they cannot be exchanged unseen."""
    return adapter(name, resolution=(32, 64))


def in_pipeline_form(found: DiffusionAdapter, x: Tensor) -> Tensor:
    """Latents (1 c ...) as the family's pipeline holds them in its loop, by its own functions."""
    pipe, (n, c, *_, h, w) = found.pipe, x.shape
    match type(pipe).__name__:
        case "FluxPipeline":
            return pipe._pack_latents(x, n, c, h, w)
        case "QwenImagePipeline":
            return pipe._pack_latents(x[:, :, None], n, c, h, w)
        case "Flux2KleinPipeline":
            return pipe._pack_latents(x)
        case "LTXPipeline":
            return pipe._pack_latents(x, 1, 1)
        case "CogVideoXPipeline":
            return x.transpose(1, 2)
    return x


class Echo(nn.Module):
    """Stands in for a denoiser: remembers what it is called with and answers its input."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any]:
        self.called = args, kwargs
        return (args[0] if args else kwargs["hidden_states"],)


class Seen(Exception):
    """The pipeline has called its denoiser."""


def arguments(denoiser: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    bound = inspect.signature(type(denoiser).forward).bind(None, *args, **kwargs).arguments
    return {
        name: value
        for name, value in bound.items()
        if value is not None and value != {} and name not in ("self", "return_dict")
    }


def pipeline_call(found: DiffusionAdapter, name: str) -> dict[str, Any]:
    """What the pipeline calls its denoiser with in its first step."""
    caught: dict[str, Any] = {}

    def spy(module: nn.Module, args: Any, kwargs: Any) -> None:
        caught.update(arguments(module, args, kwargs))
        raise Seen

    hook = getattr(found.pipe, found.family.denoiser).register_forward_pre_hook(
        spy, with_kwargs=True
    )
    with pytest.raises(Seen):
        found.sample([prompt()], [0], steps=2, guidance=GUIDANCE.get(name, 1.0))
    hook.remove()
    return caught


def prompt() -> Any:
    return sample(PROMPT, picture(0)).prompt


def problem_of(found: DiffusionAdapter, name: str) -> Any:
    row = sample(PROMPT, picture(0, frames=VIDEO.get(name, 1)))
    return found.encode(found.collate([row], [0]))["problems"][0]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_denoiser_is_called_as_the_pipeline_calls_it(name: str) -> None:
    found = wide(name)
    theirs = pipeline_call(found, name)
    problem = problem_of(found, name)
    moment = theirs.get("timestep", theirs.get("t"))
    step = step_behind(name, found, moment)
    echo = Echo()
    answer = found.family.predict(echo, problem.noisy, step, problem.text, problem.geometry)
    ours = arguments(getattr(found.pipe, found.family.denoiser), *echo.called)
    hidden = next(n for n in ("hidden_states", "sample", "x") if n in ours)
    packed = ours.pop(hidden)
    latents = theirs.pop(hidden)
    if name == "z_image":  # a list of (c 1 h w)
        packed, latents = packed[0][None, :, 0], latents[0][None, :, 0]
        answer = -answer
    assert packed.shape == latents.shape
    torch.testing.assert_close(packed, in_pipeline_form(found, problem.noisy))
    torch.testing.assert_close(answer, problem.noisy)  # what was packed is unpacked
    if name == "qwen_image":  # the pipeline leaves out a mask that hides nothing
        assert ours.pop("encoder_hidden_states_mask").all()
    assert ours.keys() == theirs.keys()
    for argument in ours:
        same(ours[argument], theirs[argument], argument)


def step_behind(name: str, found: DiffusionAdapter, moment: Any) -> Tensor:
    """Our step for the timestep that the pipeline gave its denoiser."""
    number = torch.as_tensor(moment).flatten()[:1]
    if not found.family.flow:
        return number
    if name in ("flux", "flux2", "qwen_image"):
        return number.float()
    return 1 - number.float() if name == "z_image" else number.float() / 1000


def same(ours: Any, theirs: Any, name: str) -> None:
    match ours:
        case Tensor():
            theirs = torch.as_tensor(theirs).to(ours.dtype)
            if name == "img_ids" and theirs.dim() > ours.dim():
                theirs = theirs[0]
            torch.testing.assert_close(ours, theirs.expand_as(ours), rtol=1e-6, atol=1e-6, msg=name)
        case dict():
            assert {k for k, v in ours.items() if v is not None} == {
                k for k, v in theirs.items() if v is not None
            }
            for key, value in ours.items():
                same(value, theirs[key], f"{name}.{key}")
        case list() | tuple():
            assert len(ours) == len(theirs), name
            for mine, other in zip(ours, theirs, strict=True):
                same(mine, other, name)
        case _:
            assert ours == theirs, name


def test_text_is_encoded_with_the_options_of_the_pipelines_call() -> None:
    """Wan's `encode_prompt` would cut prompts at 226 tokens, its `__call__` at 512."""
    pipe = wide("wan").pipe
    assert text_options(pipe, {}) == {"max_sequence_length": 512}
    assert text_options(pipe, {"max_sequence_length": 16}) == {"max_sequence_length": 16}


@pytest.mark.parametrize("installed", [True, False])
def test_captions_are_cleaned_only_where_that_is_possible(
    installed: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mmalign.adapters.diffusion.family.is_bs4_available", lambda: installed)
    pipe = tiny("pixart_sigma")
    assert text_options(pipe, {})["clean_caption"] is installed
    assert text_options(pipe, {"clean_caption": False})["clean_caption"] is False
    assert len(caplog.records) == (0 if installed else 1)
    if not installed:
        with pytest.raises(UserError, match="cannot be cleaned"):
            text_options(pipe, {"clean_caption": True})


class Stepped(NamedTuple):
    prev_sample: Tensor


@pytest.mark.parametrize("name", FAMILIES)
def test_latents_are_normalised_as_the_pipeline_undoes_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = wide(name)
    part = found.collate(samples(name, 1), [0])["parts"][0]
    raw = found.encoders.moments(part)[0].mean[None]
    latents = in_pipeline_form(found, found.normalise(raw))
    if name == "text_to_video_sd":  # steps on frames
        latents = latents.transpose(1, 2).flatten(0, 1)
    monkeypatch.setattr(found.pipe.scheduler, "step", lambda *a, **k: Stepped(latents))
    given: list[Tensor] = []
    decode = found.pipe.vae.decode

    def spy(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(z)
        return decode(z, *args, **kwargs)

    monkeypatch.setattr(found.pipe.vae, "decode", spy)
    found.sample([prompt()], [0], steps=1)
    decoded = torch.cat(given)
    if name in ("animatediff", "text_to_video_sd"):  # frame by frame
        decoded = decoded.unflatten(0, (1, -1)).transpose(1, 2)
    if name == "qwen_image":
        decoded = decoded[:, :, 0]
    torch.testing.assert_close(decoded, raw, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_media_come_back_from_the_vae_as_the_pipeline_shows_them(name: str) -> None:
    """The moments are those of the pixels: -1 is black and 1 is white, frames and axes in order."""
    found = wide(name)
    part = found.collate(samples(name, 1), [0])["parts"][0]
    (row,) = part.rows
    assert row.pixels is not None
    of_images = ("AutoencoderKL", "AutoencoderDC", "AutoencoderKLFlux2")
    video = type(found.pipe.vae).__name__ not in of_images
    scaled = row.pixels.float() / 255 * 2 - 1  # (f 3 h w)
    with torch.no_grad():
        encoded = found.pipe.vae.encode(scaled.transpose(0, 1)[None] if video else scaled)
    mean = encoded["latent_dist"].mean if "latent_dist" in encoded else encoded["latent"]
    ours = found.encoders.moments(part)[0].mean
    if video:
        theirs = mean[0] if name in VIDEO else mean[0][:, 0]
    else:
        theirs = mean.transpose(0, 1) if name in VIDEO else mean[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_v", "cogvideox", "sdxl"])
def test_noising_is_the_schedulers(name: str) -> None:
    scheduler = wide(name).pipe.scheduler
    process = process_of(scheduler)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 5, 4, 8, 8, generator=generator).unbind(0)
    step = torch.tensor([0, 1, 400, 900, 999])
    if name == "sdxl":  # Euler's own add_noise is in sigmas; the table is the same
        scheduler = DDPMScheduler.from_config(scheduler.config)
    theirs = scheduler.add_noise(clean, noise, step)
    torch.testing.assert_close(process.add_noise(clean, noise, step), theirs)
    if process.prediction == "v_prediction":
        torch.testing.assert_close(
            process.target(clean, noise, step), scheduler.get_velocity(clean, noise, step)
        )


def test_flow_noising_is_the_schedulers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    times = scheduler.timesteps[[0, 300, 900]]
    theirs = scheduler.scale_noise(clean, times, noise)
    torch.testing.assert_close(Process("flow").add_noise(clean, noise, times / 1000), theirs)


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_v", "sdxl", "sd3"])
def test_log_probs_equal_a_plain_computation_in_float64(name: str) -> None:
    found = adapter(name)
    row = samples(name, 2)[1]
    inputs = found.encode(found.collate([row], [11]))
    (problem,) = inputs["problems"]
    with torch.no_grad():
        ours = found.log_probs(found.policy, inputs).log_probs.item()

    pipe = found.pipe
    pipe.to(torch.float64)
    pixels = torch.frombuffer(bytearray(pil(row).tobytes()), dtype=torch.uint8)
    pixels = pixels.view(SIDE, SIDE, 3).permute(2, 0, 1)[None].double() / 127.5 - 1
    with torch.no_grad():
        z = pipe.vae.encode(pixels).latent_dist.mean
        text = pipe.encode_prompt(prompt="two red dogs run", **text_arguments(name))
        shift = pipe.vae.config.shift_factor or 0.0
        x0 = (z - shift) * pipe.vae.config.scaling_factor
        step = problem.step
        if name == "sd3":
            t = step.double().view(-1, 1, 1, 1)
            eps = (problem.noisy.double() - (1 - t) * x0) / t
            prediction = pipe.transformer(
                (1 - t) * x0 + t * eps, text[0], text[2], step.double() * 1000
            ).sample
            target = eps - x0
        else:
            abar = pipe.scheduler.alphas_cumprod.double()[step].view(-1, 1, 1, 1)
            eps = (problem.noisy.double() - abar.sqrt() * x0) / (1 - abar).sqrt()
            noisy = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
            added = {}
            if name == "sdxl":
                ids = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]], dtype=torch.float64)
                added = {"added_cond_kwargs": {"text_embeds": text[2], "time_ids": ids}}
            prediction = pipe.unet(noisy, step, text[0], **added).sample
            v = abar.sqrt() * eps - (1 - abar).sqrt() * x0
            target = v if name == "stable_diffusion_v" else eps
        plain = -0.5 * (prediction - target).square().mean().item()
    assert abs(eps.mean()) < 0.15
    assert 0.85 < eps.std() < 1.15  # what was added is standard normal noise
    assert ours == pytest.approx(plain, rel=2e-5)


def text_arguments(name: str) -> dict[str, Any]:
    if name == "sd3":
        return {
            "prompt_2": None,
            "prompt_3": None,
            "do_classifier_free_guidance": False,
            "max_sequence_length": 16,
        }
    shared = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    return {"device": torch.device("cpu"), **shared}


def pil(row: Any) -> Any:
    return Image.open(io.BytesIO(row.response[0].content))
