"""What every adapter promises, held for the vision-language adapter on tiny models."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import contract
import numpy as np
import pytest
import torch
from contract import assert_same, gradients, log_probs, stirred
from peft import PeftModel
from tiny_vision_language import FAMILIES, picture, save_family, video
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PaliGemmaProcessor

from mmalign.adapters.autoregressive import causal_lm
from mmalign.adapters.vision_language import (
    VisionLanguageAdapter,
    families,
    load_vision_language,
)
from mmalign.adapters.vision_language.families import Family
from mmalign.adapters.vision_language.features import backbone
from mmalign.errors import BadSample, UserError
from mmalign.media import frames, open_image, png
from mmalign.records import PLAIN, Media, Message, Sample, Text, media_of

pytestmark = pytest.mark.filterwarnings("ignore:.*past_key_values")

ONE, TWO, WIDE = picture(1), picture(2), picture(3, 90, 50)
SEEDS = [3, 4, 5, 6]


def sample(answer: str, *parts: str | Media) -> Sample:
    said = tuple(Text(part) if isinstance(part, str) else part for part in parts)
    return Sample((Message("user", said),), (Text(answer),))


TURNS = (
    Message("user", (ONE, Text("the dog"))),
    Message("assistant", (Text("brown"),)),
    Message("user", (TWO, Text("the fox"))),
)
SAMPLES = [
    sample("Red, green and blue.", ONE, "Name three colours."),
    sample("The dog", ONE, "Name three colours."),
    sample("", ONE, "Name three colours."),
    sample("The dog", TWO, "Name three colours."),  # equal tokens, another image
    sample("Paris.", "What is the capital of France?"),
    sample("the quick brown fox", WIDE, " and ", ONE, " jumps"),
    Sample(TURNS, (Text("over the lazy dog"),)),
]


TOWERS = ("vision_tower", "vision_model", "visual")


def samples_of(family: str) -> list[Sample]:
    """PaliGemma takes no prompt without an image."""
    shown = sample("Paris.", TWO, "What is the capital of France?")
    return [*SAMPLES[:4], shown, *SAMPLES[5:]] if family.startswith("paligemma") else SAMPLES


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = save_family(tmp_path_factory.mktemp(family), family)
        return made[family]

    return find


@pytest.fixture(params=("llava", "qwen2_5_vl", "gemma3"))
def family(request: pytest.FixtureRequest) -> str:
    """For what does not depend on what families do with images."""
    return str(request.param)


@pytest.fixture
def adapter(folder_of: Callable[[str], Path], family: str) -> VisionLanguageAdapter:
    return trained(folder_of(family))


@pytest.fixture(params=FAMILIES)
def each(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def adapter_of(folder_of: Callable[[str], Path]) -> Callable[[str], VisionLanguageAdapter]:
    """For tests that leave it as it is."""
    return cache(lambda family: trained(folder_of(family)))


def trained(folder: Path) -> VisionLanguageAdapter:
    adapter: VisionLanguageAdapter = stirred(load_vision_language(folder, lora={"r": 4}))
    return adapter


def library_log_prob(model: Any, processor: Any, sample: Sample) -> Tensor:
    """By the processor's own chat template call and the library's own forward on one row."""
    turns = [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part.text}
                if isinstance(part, Text)
                else {"type": "image", "image": _square(processor, open_image(part))}
                for part in message.parts
            ],
        }
        for message in sample.prompt
    ]
    inputs = processor.apply_chat_template(
        turns, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    # silenced: a text
    return continued(model, processor, inputs, sample.response[0].text)  # type: ignore[union-attr]


def continued(model: Any, processor: Any, inputs: Any, said: str) -> Tensor:
    """Log-probability of an answer to what a processor made of a prompt."""
    answer = said + "<|im_end|>"
    ids = processor.tokenizer(answer, add_special_tokens=False, return_tensors="pt")["input_ids"]
    suffix = int(isinstance(processor, PaliGemmaProcessor))  # what follows its prefix has a type
    for name, fill in (("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", suffix)):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.full_like(ids, fill)], dim=1)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    inputs.pop("labels", None)
    if (crossed := inputs.get("cross_attention_mask")) is not None:
        behind = crossed[:, -1:].expand(-1, ids.shape[1], -1, -1)
        inputs["cross_attention_mask"] = torch.cat([crossed, behind], dim=1)
    logits = model(**inputs, use_cache=False).logits[0, -ids.shape[1] - 1 : -1]
    return torch.log_softmax(logits.double(), -1).gather(-1, ids[0, :, None]).sum()


def _square(processor: Any, image: Any) -> Any:
    """As the adapter does for processors that crop: onto a square of the mean colour."""
    settings = processor.image_processor
    if not getattr(settings, "do_center_crop", False) or hasattr(settings, "image_grid_pinpoints"):
        return image
    side = max(image.size)
    mean = tuple(round(255 * m) for m in processor.image_processor.image_mean)
    padded = image.resize((side, side))
    padded.paste(mean, (0, 0, side, side))
    padded.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return padded


def test_shares_prompts(adapter_of: Callable[[str], VisionLanguageAdapter], each: str) -> None:
    adapter = adapter_of(each)
    assert adapter.abilities.tail
    assert adapter.abilities.packed == (each != "mllama")  # which looks through cross-attention


def test_first_step_costs_log_2(folder_of: Callable[[str], Path], family: str) -> None:
    contract.first_step_costs_log_2(
        load_vision_language(folder_of(family), lora={"r": 4, "dropout": 0.5}), SAMPLES[:2]
    )


def test_log_probs_repeat_also_after_an_optimiser_step(adapter: VisionLanguageAdapter) -> None:
    contract.log_probs_repeat(adapter, SAMPLES)


def test_rows_and_gradients_do_not_depend_on_batch_mates(
    adapter_of: Callable[[str], VisionLanguageAdapter], each: str
) -> None:
    contract.rows_do_not_depend_on_batch_mates(adapter_of(each), samples_of(each))


def test_packed_rows_equal_plain_rows_and_their_gradients(
    adapter_of: Callable[[str], VisionLanguageAdapter], each: str
) -> None:
    adapter = adapter_of(each)
    if not adapter.abilities.packed:
        pytest.skip("this family has plain rows only")
    samples = samples_of(each)
    plain = copy.copy(adapter)
    plain.collator = copy.copy(adapter.collator)
    plain.collator.packed = False
    ours, theirs = log_probs(adapter, samples), log_probs(plain, samples)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    signs = torch.tensor([1.0, -1.0, 0.5, 2.0, -1.0, 1.0, 0.3])
    assert_same(
        gradients(adapter, (signs * ours).sum()), gradients(adapter, (signs * theirs).sum())
    )
    for one in (adapter, plain):
        assert one.size(samples) == one.collate(samples)["call"]["input_ids"].numel()
    assert adapter.size(samples) < plain.size(samples)


def test_equals_the_library_on_independently_made_inputs(
    adapter_of: Callable[[str], VisionLanguageAdapter],
    folder_of: Callable[[str], Path],
    each: str,
    tmp_path: Path,
) -> None:
    adapter = adapter_of(each)
    samples = samples_of(each)
    adapter.save(tmp_path)
    base = AutoModelForImageTextToText.from_pretrained(folder_of(each), dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, tmp_path).eval()
    processor = AutoProcessor.from_pretrained(tmp_path)
    mine = log_probs(adapter, samples)
    for value, one in zip(mine.tolist(), samples, strict=True):
        with torch.no_grad():
            expected = library_log_prob(plain, processor, one).item()
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_every_image_is_encoded_once_for_policy_and_reference(
    adapter_of: Callable[[str], VisionLanguageAdapter], each: str
) -> None:
    adapter = adapter_of(each)
    samples, seen = samples_of(each), 0
    inner = backbone(causal_lm(adapter.policy))
    tower = next(m for n, m in inner.named_children() if n in TOWERS)

    def count(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal seen
        seen += len(kwargs.get("grid_thw", args[0] if args else kwargs.get("pixel_values")))

    handle = tower.register_forward_pre_hook(count, with_kwargs=True)
    inputs = adapter.encode(adapter.collate(samples, [0] * len(samples)))
    adapter.log_probs(adapter.policy, inputs)
    with torch.no_grad(), adapter.reference_mode():
        adapter.log_probs(adapter.policy, inputs)
    together, seen = seen, 0
    crowd = adapter.collator.processing.family.crowd  # then these three are seen as such as well
    for image in (ONE, TWO) if crowd else (ONE, TWO, WIDE):
        adapter.encode(adapter.collate([sample("Yes.", image, "?")], [0]))
    handle.remove()
    assert together == seen + 3 * crowd


def test_the_image_matters(adapter_of: Callable[[str], VisionLanguageAdapter], each: str) -> None:
    adapter = adapter_of(each)
    samples = samples_of(each)
    found = log_probs(adapter, [samples[1], samples[3]])
    assert (found[0] - found[1]).abs() > 1e-3


def test_one_batch_can_be_overfitted(folder_of: Callable[[str], Path], family: str) -> None:
    contract.one_batch_can_be_overfitted(
        load_vision_language(folder_of(family), lora={"r": 4}), SAMPLES[:2]
    )


def test_reference_by_adapter_off_and_by_frozen_copy_agree(adapter: VisionLanguageAdapter) -> None:
    contract.references_agree(adapter, SAMPLES)


def test_adapter_trained_on_keeps_what_it_was_as_reference(
    adapter: VisionLanguageAdapter, folder_of: Callable[[str], Path], family: str, tmp_path: Path
) -> None:
    adapter.save(tmp_path)
    contract.trains_on(adapter, load_vision_language(folder_of(family), adapter=tmp_path), SAMPLES)


def test_merged_export_loads_in_plain_transformers(
    adapter: VisionLanguageAdapter, tmp_path: Path
) -> None:
    adapter.export_merged(tmp_path)
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert plain.config.get_text_config().attention_dropout == 0.1  # published as it was
    with torch.no_grad():
        expected = library_log_prob(plain, AutoProcessor.from_pretrained(tmp_path), SAMPLES[0])
    assert log_probs(adapter, SAMPLES[:1]).item() == pytest.approx(expected.item(), rel=1e-4)


def test_full_fine_tuning_leaves_the_vision_tower_alone(
    folder_of: Callable[[str], Path], family: str
) -> None:
    adapter = load_vision_language(folder_of(family))
    trained = {n for n, p in adapter.policy.named_parameters() if p.requires_grad}
    assert trained
    assert all("language_model" in name or "lm_head" in name for name in trained)
    log_probs(adapter, SAMPLES).sum().backward()
    assert all(p.grad is not None for n, p in adapter.policy.named_parameters() if n in trained)


def test_a_trained_tower_gets_gradients(folder_of: Callable[[str], Path], family: str) -> None:
    adapter = load_vision_language(folder_of(family), lora={"r": 4}, train_vision=True)
    found = gradients(adapter, log_probs(adapter, SAMPLES[:2]).sum())
    towers = [g for n, g in found.items() if "vis" in n and "lora_B" in n]
    assert towers
    assert all(gradient.abs().max() > 0 for gradient in towers)


def test_greedy_sampling_equals_generate(
    adapter_of: Callable[[str], VisionLanguageAdapter], each: str
) -> None:
    adapter = adapter_of(each)
    samples = samples_of(each)
    prompts = [samples[i].prompt for i in (0, 4, 5, 6, 0)]
    mine = adapter.sample(prompts, list(range(5)), max_new_tokens=6, temperature=0)
    assert mine == adapter.sample(prompts, list(range(5)), max_new_tokens=6, temperature=0)
    lm, processing = causal_lm(adapter.policy).eval(), adapter.collator.processing
    for prompt, answer in zip(prompts, mine, strict=True):
        words = adapter.collator.words
        shown = [open_image(one) for one in media_of(prompt)]
        text = words.tokenizer.decode(words.prompt_ids(prompt))
        inputs = processing.processor(
            text=[text],
            images=[[_square(processing.processor, image) for image in shown]] if shown else None,
            return_tensors="pt",
        )
        out = lm.generate(
            **inputs,
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=adapter.stop_ids,
            suppress_tokens=(~adapter.speakable()).nonzero()[:, 0].tolist(),
        )
        said = words.tokenizer.decode(
            out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        assert answer == Sample(prompt, (Text(said),))


def test_seeded_sampling_does_not_depend_on_batch_mates(adapter: VisionLanguageAdapter) -> None:
    prompts = [SAMPLES[i].prompt for i in (0, 4, 5, 0)]
    together = adapter.sample(prompts, SEEDS, max_new_tokens=8)
    apart = [
        adapter.sample([prompt], [seed], max_new_tokens=8)[0]
        for prompt, seed in zip(prompts, SEEDS, strict=True)
    ]
    assert together == apart
    assert together[0] != together[3]


def test_long_prompts_are_refused_and_never_cut(adapter: VisionLanguageAdapter) -> None:
    short = copy.copy(adapter.collator)
    short.max_length, short.truncate = len(short.prompt(SAMPLES[0].prompt).ids), True
    with pytest.raises(BadSample, match="never cut"):
        short.tokens(SAMPLES[0])


def test_a_placeholder_in_the_text_is_refused(adapter: VisionLanguageAdapter) -> None:
    marker = adapter.collator.processing.placeholder
    with pytest.raises(BadSample, match="stands for an image"):
        adapter.collate([sample("Yes.", ONE, f"{marker} What is it?")], [0])
    written = adapter.tokenizer.convert_ids_to_tokens(adapter.collator.processing.image_id)
    with pytest.raises(BadSample, match="stands for an image"):
        adapter.collate([sample("Yes.", ONE, f"{written} What is it?")], [0])
    with pytest.raises(BadSample, match="stands for an image"):
        adapter.collate([sample(f"A {written}.", ONE, "What is it?")], [0])
    plain = Sample((Message(PLAIN, (ONE, Text("What is it?"))),), (Text(f"A {written}."),))
    with pytest.raises(BadSample, match="the response holds the token"):
        adapter.collate([plain], [0])


def test_a_video_counts_as_evenly_spaced_frames(folder_of: Callable[[str], Path]) -> None:
    """Of another number of frames, another one is the second; a short video has all it has."""
    for wanted, taken in ((3, (0, 2, 4)), (2, (0, 4)), (8, (0, 1, 2, 3, 4))):
        adapter = load_vision_language(folder_of("llava_next"), video_frames=wanted)
        moving, still = video(5), [png(frame) for frame in frames(video(5), 5)]
        as_images = [still[number] for number in taken]
        asked = [sample("A dog.", *shown, "?") for shown in ([moving], as_images, [moving, ONE])]
        found = log_probs(adapter, asked)
        assert found[0] == found[1] != found[2]
        spans = adapter.spans(asked[2].prompt)
        assert [span.size for span in spans] == [(70, 50)] * len(taken) + [(80, 60)]


@pytest.mark.parametrize(
    "family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl", "smolvlm"]
)
def test_a_video_seen_as_such_equals_the_library(
    adapter_of: Callable[[str], VisionLanguageAdapter],
    folder_of: Callable[[str], Path],
    family: str,
    tmp_path: Path,
) -> None:
    adapter, moving = adapter_of(family), video(7)
    # SmolVLM's own processor loses images beside a video, so that nothing is there to compare with.
    beside = () if family == "smolvlm" else (ONE, "then")
    samples = [
        sample("A dog.", *beside, moving, "and?"),
        sample("It is a cat.", *beside, moving, "and?"),
        sample("The fox", moving, "?"),
        SAMPLES[0],
        SAMPLES[4],
    ]
    mine = log_probs(adapter, samples)
    apart = torch.cat([log_probs(adapter, [one]) for one in samples])
    torch.testing.assert_close(mine, apart, rtol=1e-5, atol=1e-5)
    adapter.save(tmp_path)
    base = AutoModelForImageTextToText.from_pretrained(folder_of(family), dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, tmp_path).eval()
    processor = adapter.collator.processing.processor
    shots = np.stack([np.asarray(frame) for frame in frames(moving, 7)])
    for value, one in zip(mine[:3].tolist(), samples[:3], strict=True):
        inputs = processor(
            text=[adapter.tokenizer.decode(adapter.collator.words.prompt_ids(one.prompt))],
            images=[[open_image(part) for part in media_of(one.prompt) if part.kind == "image"]]
            if len(media_of(one.prompt)) > 1
            else None,
            videos=[shots],
            video_metadata=[{"total_num_frames": 7, "fps": 10.0, "frames_indices": list(range(7))}],
            do_sample_frames=False,
            return_tensors="pt",
        )
        out = plain.generate(
            **inputs,
            max_new_tokens=4,
            do_sample=False,
            eos_token_id=adapter.stop_ids,
            suppress_tokens=(~adapter.speakable()).nonzero()[:, 0].tolist(),
        )
        said = adapter.tokenizer.decode(
            out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        answers = adapter.sample([one.prompt], [0], max_new_tokens=4, temperature=0)
        assert answers == [Sample(one.prompt, (Text(said),))]
        with torch.no_grad():
            expected = continued(plain, processor, inputs, one.response[0].text).item()
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-5)
    [still, whole] = adapter.spans(sample("", ONE, "then", moving).prompt)
    assert (still.size, whole.size) == ((80, 60), (70, 50))
    frame = len(whole.positions) // (4 if "qwen" in family else 7)  # two by two
    assert torch.equal(
        whole.rectangles, whole.rectangles[:frame].repeat(len(whole.positions) // frame, 1)
    )


def test_workers_get_no_model(adapter: VisionLanguageAdapter) -> None:
    collate = pickle.loads(pickle.dumps(adapter.collate))
    assert torch.equal(collate(SAMPLES)["targets"], adapter.collate(SAMPLES)["targets"])


def test_a_model_that_computes_otherwise_is_refused(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PaliGemma without being told where its prefix ends sees no token ahead."""
    monkeypatch.setitem(families.FAMILIES, "PaliGemmaProcessor", Family())
    with pytest.raises(UserError, match="answers otherwise here than through its own library"):
        load_vision_language(folder_of("paligemma"))


def test_phi_4_multimodal_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "phi4_multimodal"}')
    with pytest.raises(UserError, match=r"^models of the kind phi4_multimodal cannot"):
        load_vision_language(tmp_path)


def test_a_family_that_nobody_listed_is_admitted_by_trying(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = load_vision_language(folder_of("idefics3"))
    monkeypatch.delitem(families.FAMILIES, "Idefics3Processor")
    adapter = load_vision_language(folder_of("idefics3"))
    torch.testing.assert_close(log_probs(adapter, SAMPLES), log_probs(listed, SAMPLES))
    with pytest.raises(UserError, match="lays out the tokens of an image is not known"):
        adapter.spans(SAMPLES[0].prompt)
