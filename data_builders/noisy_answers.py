"""What a model says under a noisy image: the answers that POVID's second stage trains against.

The policy is shown the image as after half of a diffusion process. Either it is led through the
good answer and takes the likeliest token at each place (forced, as in the paper, where the result
is no fluent text), or it answers by itself (written). arXiv:2402.11411, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import Literal

import torch

from mmalign.adapters.autoregressive import evaluating
from mmalign.adapters.protocol import PREDICTIONS
from mmalign.adapters.vision_language import VisionLanguageAdapter
from mmalign.data.views import NOISE_STEP, NOISE_STEPS
from mmalign.data_builders.answered import Answered
from mmalign.data_builders.bdhs import under_noise
from mmalign.data_builders.command import as_command
from mmalign.data_builders.engine import Refused
from mmalign.data_builders.sampling import SampledModel, load
from mmalign.data_builders.text_faults import faulty
from mmalign.errors import BadSample, UserError
from mmalign.records import Media, Preference, Provenance, Sample, Text, media_of, text_of
from mmalign.training.seeds import derive

How = Literal["forced", "written"]


def noisy_answers(
    adapter: VisionLanguageAdapter,
    answers: Sequence[Sample],
    seeds: Sequence[int],
    *,
    how: How = "forced",
    step: int = NOISE_STEP,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
) -> list[str]:
    """What the policy, as it is now, says to each of these prompts under noise.

    Called inside training, on each batch, it is POVID's own procedure. seeds: of noise and draws,
    one for each answer. step: of 1000 of the diffusion process.
    Raises BadSample for answers whose prompt shows no image, or which are not text.
    """
    noisy = []
    for answer, seed in zip(answers, seeds, strict=True):
        if not media_of(answer.prompt):
            raise BadSample("its prompt shows no image to put noise on")
        if any(isinstance(part, Media) for part in answer.response):
            raise BadSample("its answer is not text")
        prompt = under_noise(answer.prompt, derive(seed, "noise"), step=step)
        noisy.append(Sample(prompt, answer.response))
    if how == "forced":
        return _forced(adapter, noisy)
    made = adapter.sample(
        [one.prompt for one in noisy],
        [derive(seed, "draws") for seed in seeds],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
    )
    return [text_of(one.response).strip() for one in made]


def _forced(adapter: VisionLanguageAdapter, samples: Sequence[Sample]) -> list[str]:
    """The likeliest word at every place of the answers, each after their true beginnings."""
    if adapter.collator.processing.family.cross_attention and len(samples) > 1:
        # whose batches come in parts, by the number of images
        return [text for sample in samples for text in _forced(adapter, [sample])]
    with torch.no_grad(), evaluating(adapter.policy):
        inputs = adapter.encode(adapter.collate(samples, [0] * len(samples)))
        scored = adapter.log_probs(adapter.policy, inputs, {PREDICTIONS})
    allowed = adapter.speakable().to(scored.predictions.device)
    best = scored.predictions.masked_fill(~allowed, -torch.inf).argmax(-1).cpu()  # (p,)
    mask = inputs["mask"].cpu()
    tokens = torch.zeros(mask.shape, dtype=torch.long)
    tokens.view(-1)[inputs["places"].cpu()] = best
    texts = []
    for sample, row in zip(samples, tokens.tolist(), strict=True):
        places = adapter.collator.words.places(sample)  # None for what closes the turn
        own = [token for token, place in zip(row, places, strict=False) if place is not None]
        texts.append(str(adapter.tokenizer.decode(own, skip_special_tokens=True)).strip())
    return texts


def build(
    answers: Iterable[Answered],
    *,
    model: str,
    lora: str | None = None,
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    how: How = "forced",
    step: int = NOISE_STEP,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    batch_size: int = 4,
    seed: int = 0,
) -> Iterator[Preference | Refused]:
    """Prefer good answers to what the model says under a noisy image, and to a faulty one.

    Reads the answers or captions of images, or the preferred answers of preferences. Each becomes a
    preference of three candidates, as povid() reads it: the answer, what the model says under the
    noise, and the rejected answer that was given or else the answer with a planted fault. Where no
    fault finds a place, the answer under noise stands in both places.

    Args:
        model: Hub id or folder of the vision-language model that is to be aligned.
        lora: Folder of a LoRA on it.
        precision: Arithmetic and weights.
        how: Take the likeliest token at each place of the good answer (forced), or let the model
            answer by itself (written).
        step: Of the 1000 steps of the diffusion process, at which the image is shown.
        max_new_tokens: Tokens of an answer of its own.
        temperature: Of its draws; 0 takes the likeliest.
        batch_size: Answers at once; forced ones hold 4 bytes for each token of the answer and word
            of the vocabulary.
        seed: Of noise, faults and draws.

    Examples:
        mmalign build noisy-answers captioned-photos --model llava-hf/llava-1.5-7b-hf --out pairs
        mmalign align-vlm --model llava-hf/llava-1.5-7b-hf --data pairs --objective "povid()"
    """
    if not 1 <= step <= NOISE_STEPS:
        raise UserError(f"step is one of the {NOISE_STEPS} of a diffusion process, not {step}")
    who = SampledModel(model=model, modality="vlm", lora=lora, precision=precision)
    adapter = load(who)
    assert isinstance(adapter, VisionLanguageAdapter)  # by its modality
    inputs = list(answers)
    for first in range(0, len(inputs), batch_size):
        some = inputs[first : first + batch_size]
        texts = noisy_answers(
            adapter,
            [each.sample for each in some],
            [derive(seed, "noisy answers", each.id) for each in some],
            how=how,
            step=step,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
        )
        for each, text in zip(some, texts, strict=True):
            good = text_of(each.sample.response).strip()
            if not text or text == good:
                what = "the good answer" if text else "nothing"
                yield Refused(each.id, f"under noise the model says {what}", "answers")
                continue
            yield _preference(each, text, who.name, how, step, seed)


def _preference(
    answered: Answered, text: str, model: str, how: How, step: int, seed: int
) -> Preference:
    """The answer above the one under noise and the rejected one, between which nothing is known."""
    sample, given = answered.sample, answered.given
    noisy = Sample(sample.prompt, (Text(text),))
    rejected, fault = noisy, None
    if given is not None and len(given.candidates) > 1:
        rejected, fault = given.rejected, "given"
    elif found := faulty(text_of(sample.response), Random(derive(seed, "fault", answered.id))):
        rejected, fault = Sample(sample.prompt, (Text(found.text),)), found.kind
    before = given.source.details if given is not None else {}
    source = Provenance(
        "noisy_answers",
        parents=(answered.id,),
        models=(model,),
        seed=seed,
        details={**before, "how": how, "step": step, "rejected": fault or "under noise"},
    )
    return Preference((sample, noisy, rejected), (1.0, 0.0, 0.0), source=source)


command = as_command("noisy-answers", build, chunk=16)
