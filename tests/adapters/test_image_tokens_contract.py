"""What every adapter promises, held for image generators on tiny models of every family."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import contract
import numpy as np
import pytest
import torch
from contract import log_probs, stirred
from peft import PeftModel
from PIL import Image
from tiny_image_models import CODES, MAKERS, save_decoder, save_image_model, save_pipeline
from torch import Tensor

from mmalign.adapters.autoregressive import causal_lm
from mmalign.adapters.image_tokens import ImageTokenAdapter, glm_image, load_image_tokens
from mmalign.adapters.image_tokens.pictures import codes_in
from mmalign.adapters.protocol import BadSample
from mmalign.errors import UserError
from mmalign.media import open_image
from mmalign.records import Media, Message, Sample, Span, Text

pytestmark = pytest.mark.filterwarnings("ignore:.*past_key_values", "ignore:.*tie_word_embeddings")


def prompt(text: str) -> tuple[Message, ...]:
    return (Message("user", (Text(text),)),)


def photograph(seed: int) -> Media:
    """A picture that was not drawn by the model."""
    noise = np.random.default_rng(seed).integers(0, 255, (11, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return Media("image", data=buffer.getvalue())


SAMPLES = [
    Sample(prompt("Name three colours."), (photograph(0),)),
    Sample(prompt("Name three colours."), (photograph(1),)),
    Sample(prompt("the dog"), (Text("a red dog", (Span(2, 5, 2.0),)), photograph(2))),
    Sample(prompt("the dog"), (Text("jumps"), photograph(3))),
]
PAIR = SAMPLES[:2]
GUIDED = [family for family in MAKERS if family != "glm_image"]
"""Those that can draw with guidance, and write."""
DECODERS = {"chameleon": save_decoder, "glm_image": save_pipeline}


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The model of a family, or what decodes its images."""
    made: dict[tuple[str, bool], Path] = {}

    def find(family: str, *, decoder: bool = False) -> Path:
        if (family, decoder) not in made:
            where = tmp_path_factory.mktemp(family)
            made[family, decoder] = (
                DECODERS[family](where) if decoder else save_image_model(where, family)
            )
        return made[family, decoder]

    return find


@pytest.fixture(params=MAKERS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


Load = Callable[..., ImageTokenAdapter]


@pytest.fixture
def load(folder_of: Callable[..., Path], family: str, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.setattr(glm_image, "PREVIEW", 2)  # in place of 256 codes before each picture

    def loaded(folder: Path | None = None, **options: Any) -> ImageTokenAdapter:
        size = 8
        if family in DECODERS:
            options["decoder"] = folder_of(family, decoder=True)
        if family == "glm_image":
            size, options = 64, {"decoder_steps": 2, "plan": "condition", **options}
        return load_image_tokens(folder or folder_of(family), resolution=size, **options)

    return loaded


@pytest.fixture
def adapter(load: Load) -> ImageTokenAdapter:
    return stirred(load(lora={"r": 4}))


def plain_embeddings(model: Any, family: str, ids: list[int], first: int) -> Tensor:
    """(1 s h), token by token, by the library's own parts."""
    rows = []
    for token in ids:
        one = torch.tensor([[token if token < first else token - first]])
        if token < first or family == "glm_image":
            rows.append(model.get_input_embeddings()(one))
        elif family == "janus":
            rows.append(model.prepare_embeddings_for_image_generation(one))
        else:
            own = model.model.vocabulary_mapping.img2bpe[token - first]
            rows.append(model.get_input_embeddings()(torch.tensor([[own]])))
    return torch.cat(rows, 1)


def plain_states(model: Any, family: str, ids: list[int], first: int) -> Tensor:
    """(s h), by the library's decoder and with the library's positions."""
    inner = {"janus": "language_model", "emu3": "text_model", "glm_image": "language_model"}
    body = getattr(model.model, inner[family]) if family in inner else model.model
    call: dict[str, Any] = {"inputs_embeds": plain_embeddings(model, family, ids, first)}
    if family == "glm_image":
        prompt = torch.tensor([[token for token in ids if token < first]])
        grids = torch.tensor([[1, 2, 2], [1, 2, 2]])
        positions, _ = model.model.get_rope_index(prompt, image_grid_thw=grids)
        drawn = model.model._cached_decode_position_ids.transpose(0, 1)
        call["position_ids"] = torch.cat([positions, drawn], -1)[..., : len(ids)]
    states: Tensor = body(**call).last_hidden_state[0]
    return states


def plain_scores(model: Any, family: str, ids: list[int], start: int, first: int) -> list[float]:
    """log p of the tokens from `start` on, in the model's precision, one softmax at a time."""
    states = plain_states(model, family, ids, first)
    scores = []
    for place in range(start, len(ids)):
        token, state = ids[place], states[place - 1]
        if family == "janus":
            logits = model.model.generation_head(state) if token >= first else model.lm_head(state)
            wanted = token - first if token >= first else token
        elif family == "glm_image":
            logits, wanted = model.lm_head(state)[:CODES], token - first
        else:
            own = model.model.vocabulary_mapping.image_tokens
            logits, mapping = model.lm_head(state), model.model.vocabulary_mapping.img2bpe
            allowed = torch.zeros(len(logits), dtype=torch.bool)
            allowed[own] = True
            wanted = mapping[token - first] if token >= first else token
            logits = logits.masked_fill(allowed != (token >= first), -torch.inf)
        scores.append((logits[wanted] - logits.logsumexp(-1)).item())
    return scores


def plain_model(adapter: ImageTokenAdapter, base: Path, where: Path) -> Any:
    """The library's own model in float64, with the LoRA read back from disk by peft."""
    adapter.save(where)
    model = adapter.family.model.from_pretrained(base, dtype=torch.float64)
    return PeftModel.from_pretrained(model, where).double().eval().base_model.model


def test_packs(adapter: ImageTokenAdapter) -> None:
    assert adapter.packed
    inputs = adapter.encode(adapter.collate(SAMPLES, [0] * 4))
    assert adapter.size(SAMPLES) == inputs["call"]["input_ids"].numel()
    assert len(inputs["call"]["input_ids"]) == 1


def test_first_step_costs_log_2(load: Load) -> None:
    contract.first_step_costs_log_2(load(lora={"r": 4, "dropout": 0.5}), PAIR)


def test_log_probs_repeat_also_after_an_optimiser_step(adapter: ImageTokenAdapter) -> None:
    contract.log_probs_repeat(adapter, SAMPLES)


def test_rows_do_not_depend_on_batch_mates_nor_on_packing(adapter: ImageTokenAdapter) -> None:
    contract.rows_do_not_depend_on_batch_mates(adapter, SAMPLES)
    padded = copy.copy(adapter)
    padded.packed = False
    torch.testing.assert_close(
        log_probs(padded, SAMPLES), log_probs(adapter, SAMPLES), rtol=1e-5, atol=1e-5
    )


def test_equals_an_independent_plain_computation(
    adapter: ImageTokenAdapter, folder_of: Callable[..., Path], family: str, tmp_path: Path
) -> None:
    plain = plain_model(adapter, folder_of(family), tmp_path)
    inputs = adapter.encode(adapter.collate(SAMPLES, [0] * 4))
    scored = adapter.log_probs(adapter.policy, inputs)
    assert scored.tokens is not None
    drawn = adapter._with_codes([adapter.collator.drawn(sample) for sample in SAMPLES])
    for row, one in enumerate(drawn):
        start, first = len(one.tokens.prompt), adapter.collator.layout.first_code
        ids = [*one.tokens.prompt, *one.tokens.completion]
        with torch.no_grad():
            every = plain_scores(plain, family, ids, start, first)
        expected = [p for p, counted in zip(every, one.scored, strict=True) if counted]
        mine = scored.tokens.log_probs[row][scored.tokens.mask[row]].double()
        torch.testing.assert_close(mine, torch.tensor(expected).double(), rtol=1e-5, atol=1e-4)
        assert scored.lengths[row] == len(expected) == sum(one.scored)
        assert scored.log_probs[row].item() == pytest.approx(sum(expected), rel=1e-5)
        assert sum(i >= first for i in ids) == adapter.collator.layout.count
    assert (2.0 in scored.tokens.weights[2]) == adapter.family.writes


@pytest.mark.parametrize("family", GUIDED)
def test_guided_log_probs_equal_an_independent_plain_computation(
    load: Load, folder_of: Callable[..., Path], family: str, tmp_path: Path
) -> None:
    adapter = stirred(load(lora={"r": 4}, guidance=3.0))
    mine = log_probs(adapter, PAIR)
    plain = plain_model(adapter, folder_of(family), tmp_path)
    first = adapter.collator.layout.first_code
    drawn = adapter._with_codes([adapter.collator.drawn(sample) for sample in PAIR])
    for row, (one, bare) in enumerate(zip(drawn, adapter.collator.rows(drawn)[2:], strict=True)):
        logits = []
        for part in (one, bare):
            ids = [*part.tokens.prompt, *part.tokens.completion]
            with torch.no_grad():
                states = plain_states(plain, family, ids, first)
                logits.append(adapter.family.logits(plain, states))
        told, untold = (x[-len(one.scored) - 1 : -1] for x in logits)
        every = torch.log_softmax(untold + 3.0 * (told - untold), -1)
        codes = [t - first for t, s in zip(one.tokens.completion, one.scored, strict=True) if s]
        expected = every[torch.tensor(one.scored)].gather(1, torch.tensor(codes)[:, None]).sum()
        assert mine[row].item() == pytest.approx(expected.item(), rel=1e-5)


def test_one_batch_can_be_overfitted(load: Load) -> None:
    adapter = load(lora={"r": 4})
    pair = adapter.sample([prompt("the dog")] * 2, [0, 1])
    contract.one_batch_can_be_overfitted(adapter, pair)


def test_reference_by_adapter_off_and_by_frozen_copy_agree(adapter: ImageTokenAdapter) -> None:
    contract.references_agree(adapter, SAMPLES)


def test_saves_and_loads(adapter: ImageTokenAdapter, load: Load, tmp_path: Path) -> None:
    before = log_probs(adapter, SAMPLES)
    adapter.save(tmp_path / "lora")
    again = load(adapter=tmp_path / "lora")
    torch.testing.assert_close(log_probs(again, SAMPLES), before, rtol=1e-5, atol=1e-5)
    adapter.export_merged(tmp_path / "merged")
    merged = load(tmp_path / "merged", lora={"r": 4})
    assert merged.collator.layout == adapter.collator.layout
    torch.testing.assert_close(log_probs(merged, SAMPLES), before, rtol=1e-5, atol=1e-4)


def test_full_fine_tuning_leaves_the_image_tokenizer_alone(load: Load, tmp_path: Path) -> None:
    adapter = load()
    lm, parts = causal_lm(adapter.policy), adapter.family.tokenizer
    before = [copy.deepcopy(lm.get_submodule(part).state_dict()) for part in parts]
    with pytest.raises(ValueError, match="frozen copy"), adapter.reference_mode():
        pass
    log_probs(adapter, SAMPLES).sum().backward()
    weights = [p for p in adapter.policy.parameters() if p.requires_grad]
    torch.optim.SGD(weights, 1e-4).step()
    for part, old in zip(parts, before, strict=True):
        after = lm.get_submodule(part).state_dict()
        assert all(torch.equal(old[name], after[name]) for name in old)
    adapter.save(tmp_path)
    again = load(tmp_path)
    torch.testing.assert_close(
        log_probs(again, SAMPLES), log_probs(adapter, SAMPLES), rtol=1e-5, atol=1e-4
    )


def test_pictures_remember_their_codes_and_draws_follow_from_the_seed(
    adapter: ImageTokenAdapter,
) -> None:
    prompts = [prompt("the dog"), prompt('A "red" dog.'), prompt("the dog")]
    how: dict[str, Any] = {"guidance": 2.0, "plan_tokens": 3} if adapter.family.writes else {}
    drawn = adapter.sample(prompts, [5, 6, 7], **how)
    assert drawn == adapter.sample(prompts, [5, 6, 7], **how)
    assert drawn[2:] == adapter.sample(prompts[2:], [7], **how)
    images = [sample.response[-1] for sample in drawn]
    assert images[0] != images[2]
    for image in images:
        assert isinstance(image, Media)
        codes = codes_in(image, adapter.collator.layout.codec)
        assert codes is not None
        assert list(map(len, codes)) == adapter.collator.layout.widths
        assert max(map(max, codes)) < CODES
        assert codes_in(image, "another tokenizer") is None


def test_sampled_codes_have_the_probability_they_were_drawn_with(
    adapter: ImageTokenAdapter,
) -> None:
    """Greedy codes are the likeliest ones under the log-probabilities that training sees."""
    (drawn,) = adapter.sample([prompt("the dog")], [0], guidance=1.0, temperature=0)
    one = adapter.collator.drawn(drawn)
    first = adapter.collator.layout.first_code
    places = [i for i, counted in enumerate(one.scored) if counted]
    for place in (0, 3, len(places) - 1):
        others = []
        for code in range(CODES):
            ids = list(one.tokens.completion)
            ids[places[place]] = first + code
            others.append(replace(one, tokens=replace(one.tokens, completion=tuple(ids))))
        inputs = adapter.encode({"drawn": others})
        tokens = adapter.log_probs(adapter.policy, inputs).tokens
        assert tokens is not None
        likeliest = int(tokens.log_probs[:, place].argmax())
        assert one.tokens.completion[places[place]] == first + likeliest
        assert tokens.log_probs[:, place].exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_an_image_that_is_begun_and_continued_is_the_one_drawn_at_once(
    adapter: ImageTokenAdapter,
) -> None:
    from mmalign.adapters.image_tokens.drawing import Taste

    prompts, taste = (
        [prompt("the dog"), prompt("a fox")],
        Taste(guidance=2.0 if adapter.family.writes else 1.0),
    )
    with adapter.drawing():
        whole = adapter.codes(prompts, [1, 2], taste)
        for upto in (3, adapter.collator.layout.count // 2):
            begun = adapter.codes(prompts, [1, 2], taste, upto=upto)
            assert [row[:upto] for row in whole] == begun
            assert adapter.codes(prompts, [1, 2], taste, begun=begun) == whole


def test_images_of_another_size_are_drawn_where_there_is_a_choice(
    adapter: ImageTokenAdapter, family: str
) -> None:
    if family in ("janus", "chameleon"):
        with pytest.raises(UserError, match="8 x 8"):
            adapter.sample([prompt("the dog")], [0], height=16)
        return
    stride = adapter.collator.layout.grid.stride
    (drawn,) = adapter.sample([prompt("the dog")], [0], height=stride, width=2 * stride)
    (picture,) = drawn.response
    assert isinstance(picture, Media)
    assert open_image(picture).size == (2 * stride, stride)
    rows = codes_in(picture, adapter.collator.layout.codec)
    assert rows is not None
    assert len(rows[-1]) == 2
    collator = adapter.at(stride, 2 * stride).collator
    assert collator.drawn(drawn).picture is None  # its codes are what it was drawn from
    assert adapter.collator.drawn(drawn).picture is not None


def test_workers_get_no_model(adapter: ImageTokenAdapter) -> None:
    collate, size = pickle.loads(pickle.dumps((adapter.collate, adapter.size)))
    assert len(pickle.dumps(collate)) < 300_000
    assert size(SAMPLES) == adapter.size(SAMPLES)


def test_bad_samples_are_refused(adapter: ImageTokenAdapter, load: Load) -> None:
    for response, why in (
        ((Text("words"),), "end with an image"),
        ((photograph(0), photograph(1)), "more than one"),
        ((Media("image", data=b"nothing"),), "cannot be read"),
    ):
        with pytest.raises(BadSample, match=why):
            adapter.collator.drawn(Sample(prompt("the dog"), response))
    with pytest.raises(BadSample, match="max_length=20"):
        load(lora={"r": 4}, max_length=20).collator.drawn(SAMPLES[0])


@pytest.mark.parametrize("family", GUIDED)
def test_plans_have_no_guided_log_probs(load: Load) -> None:
    with pytest.raises(BadSample, match="guidance"):
        load(lora={"r": 4}, guidance=2.0).collator.drawn(SAMPLES[2])


def test_chameleon_without_decoder_trains_but_does_not_draw(
    folder_of: Callable[..., Path],
) -> None:
    adapter = load_image_tokens(folder_of("chameleon"), lora={"r": 4})
    assert log_probs(adapter, PAIR).isfinite().all()
    with pytest.raises(UserError, match="decoder="):
        adapter.sample([prompt("the dog")], [0])


def test_greedy_janus_equals_the_librarys_own_drawing(folder_of: Callable[..., Path]) -> None:
    adapter = load_image_tokens(folder_of("janus"), lora={"r": 4})
    lm = causal_lm(adapter.policy).eval()
    # `from_pretrained` of transformers 5.24 forgets this setting, without which it cannot draw.
    lm.generation_config.generation_kwargs = {"boi_token_id": adapter.collator.opening[0]}
    (mine,) = adapter.sample([prompt("the dog")], [0], guidance=3.0, temperature=0)
    ids = [*adapter.collator.prompt_ids(prompt("the dog")), *adapter.collator.opening]
    with torch.no_grad():
        theirs = lm.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long(),
            generation_mode="image", guidance_scale=3.0, do_sample=False,
        )  # fmt: skip
    codes = codes_in(mine.response[-1], adapter.collator.layout.codec)  # type: ignore[arg-type]  # a picture
    assert codes is not None
    assert list(chain(*codes)) == theirs[0].tolist()


def test_greedy_emu3_equals_the_librarys_own_drawing(folder_of: Callable[..., Path]) -> None:
    adapter = load_image_tokens(folder_of("emu3"), lora={"r": 4}, resolution=8)
    lm = causal_lm(adapter.policy).eval()
    (mine,) = adapter.sample([prompt("the dog")], [0], guidance=1.0, temperature=0)
    inputs = adapter.processor(
        text="the dog", return_for_image_generation=True, ratio="1:1", image_area=1024,
        return_tensors="pt",
    )  # fmt: skip
    start = inputs["input_ids"].shape[1]
    mapping = lm.model.vocabulary_mapping

    def allowed(_: int, ids: Tensor) -> list[int]:
        ends = (len(ids) - start) % 5 == 4
        return [mapping.eol_token_id] if ends else mapping.image_tokens

    with torch.no_grad():
        theirs = lm.generate(
            inputs["input_ids"], attention_mask=torch.ones(1, start).long(), max_new_tokens=19,
            do_sample=False, prefix_allowed_tokens_fn=allowed, eos_token_id=None, pad_token_id=2,
        )[0, start:]  # fmt: skip
    codes = codes_in(mine.response[-1], adapter.collator.layout.codec)  # type: ignore[arg-type]  # a picture
    assert codes is not None
    assert [mapping.img2bpe[c] for c in list(chain(*codes))] == [
        t for t in theirs.tolist() if t != mapping.eol_token_id
    ]


@pytest.mark.parametrize("family", ["glm_image"])
def test_glm_image_refuses_what_it_was_not_trained_for(load: Load) -> None:
    with pytest.raises(UserError, match="prompt without content"):
        load(guidance=2.0)
    with pytest.raises(BadSample, match="plan='condition'"):
        load(plan="score").collator.drawn(SAMPLES[2])
    adapter = load()
    with pytest.raises(UserError, match="prompt without content"):
        adapter.sample([prompt("the dog")], [0], guidance=2.0)
    with pytest.raises(UserError, match="no head for words"):
        adapter.sample([prompt("the dog")], [0], plan_tokens=3)


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (1152, 768)])
def test_glm_images_prompt_is_the_librarys(
    folder_of: Callable[..., Path], size: tuple[int, int]
) -> None:
    adapter = load_image_tokens(folder_of("glm_image"), resolution=size)
    theirs = adapter.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "the dog"}]}], tokenize=True,
        return_dict=True, processor_kwargs={"target_h": size[0], "target_w": size[1]},
    )  # fmt: skip
    collator = adapter.collator
    ours = [*collator.prompt_ids(prompt("the dog")), *collator.opening]
    assert [ours] == theirs["input_ids"]
    grids = [[1, grid.rows, grid.columns] for grid in reversed(collator.layout.grids)]
    assert grids == torch.as_tensor(theirs["image_grid_thw"]).tolist()


@pytest.mark.parametrize("family", ["glm_image"])
def test_greedy_glm_image_equals_the_librarys_own_drawing(load: Load) -> None:
    adapter = load(lora={"r": 4})
    lm = causal_lm(adapter.policy).eval()
    prompts = [prompt("the dog"), prompt("Name three colours.")]
    mine = adapter.sample(prompts, [0, 0], temperature=0)
    for asked, sample in zip(prompts, mine, strict=True):
        ids = torch.tensor([[*adapter.collator.prompt_ids(asked), *adapter.collator.opening]])
        with torch.no_grad():
            theirs = lm.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                image_grid_thw=torch.tensor([[1, 2, 2], [1, 2, 2]]), max_new_tokens=8,
                prefix_allowed_tokens_fn=lambda row, seen: list(range(CODES)),
            )  # fmt: skip
        codes = codes_in(sample.response[-1], adapter.collator.layout.codec)  # type: ignore[arg-type]  # a picture
        assert codes is not None
        assert list(chain(*codes)) == theirs[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", ["glm_image"])
def test_glm_image_finds_the_codes_that_the_library_finds(load: Load) -> None:
    adapter = load()
    lm = causal_lm(adapter.policy).eval()
    noise = np.random.default_rng(0).integers(0, 255, (2, 2, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((64, 64), Image.Resampling.BICUBIC)
    theirs = adapter.processor.image_processor(image, return_tensors="pt")
    with torch.no_grad():
        features = lm.get_image_features(theirs["pixel_values"], theirs["image_grid_thw"])
        expected = lm.get_image_tokens(features.pooler_output)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        found = adapter.family.to_codes(lm, adapter.pixels.normalised(pixels))
    assert len(set(expected.tolist())) > 1
    assert found[0, 4:].tolist() == expected.tolist()
    assert found[0, :4].tolist() == expected.tolist()  # a preview that is as large as its image


def test_glm_image_is_read_as_it_is_published(
    folder_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline of diffusers draws with its own decoder; codes and prompt alone decide how."""
    monkeypatch.setattr(glm_image, "PREVIEW", 2)
    whole = folder_of("glm_image", decoder=True)
    adapter = load_image_tokens(whole, lora={"r": 4}, resolution=64, decoder_steps=2)
    codes = [[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 9]]
    dog = prompt("the dog")
    first, other = adapter.pictures(codes, [dog, prompt('A sign: "stop".')])
    assert adapter.pictures(codes[:1], [dog]) == [first]
    assert adapter.pictures(codes[1:], [dog]) != [first]
    assert adapter.pictures(codes[1:], [dog]) != [other]  # quoted words are drawn letter by letter
    alone = load_image_tokens(folder_of("glm_image"), resolution=64)
    with pytest.raises(UserError, match="decoder="):
        alone.pictures(codes[:1], [dog])
