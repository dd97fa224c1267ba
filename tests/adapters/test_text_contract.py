"""What every adapter promises, held for the text adapter on every family of tiny models."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import contract
import pytest
import torch
from contract import assert_same, gradients, log_probs, stirred
from peft import PeftModel
from tiny_models import FAMILIES, PLAIN_ROWS, save_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from mmalign.adapters.autoregressive import Tokens, causal_lm
from mmalign.adapters.text import TextAdapter, load_text
from mmalign.records import Message, Sample, Text

pytestmark = pytest.mark.filterwarnings("ignore:.*slower plain way", "ignore:.*tie_word_embeddings")


def chat(question: str, answer: str) -> Sample:
    return Sample((Message("user", (Text(question),)),), (Text(answer),))


# Longer than the tiny models' sliding windows; one response is empty.
SAMPLES = [
    chat("Name three colours.", "Red, green and blue are three colours."),
    chat("Name three colours.", "The dog"),
    chat("Name three colours.", ""),
    chat("What is the capital of France?", "Paris."),
    chat("What is the capital of France?", "the quick brown fox"),
]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = save_model(tmp_path_factory.mktemp(family), family)
        return made[family]

    return find


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def adapter(folder_of: Callable[[str], Path], family: str) -> TextAdapter:
    return stirred(load_text(folder_of(family), lora={"r": 4, "dropout": 0.0}))


def plain_log_probs(model: nn.Module, tokens: Tokens) -> Tensor:
    """(t,) by the library's own forward on one unpadded row, all logits."""
    ids = torch.tensor([[*tokens.prompt, *tokens.completion]])
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].double()
    every = torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0]
    return every[len(tokens.prompt) - 1 :]


def test_packs_unless_recurrent(adapter: TextAdapter, family: str) -> None:
    assert adapter.abilities.tail
    assert adapter.abilities.packed == (family not in PLAIN_ROWS)


def test_first_step_costs_log_2(folder_of: Callable[[str], Path], family: str) -> None:
    contract.first_step_costs_log_2(
        load_text(folder_of(family), lora={"r": 4, "dropout": 0.5}), SAMPLES[:2]
    )


def test_log_probs_repeat_also_after_an_optimiser_step(adapter: TextAdapter) -> None:
    contract.log_probs_repeat(adapter, SAMPLES)


def test_rows_and_gradients_do_not_depend_on_batch_mates(adapter: TextAdapter) -> None:
    contract.rows_do_not_depend_on_batch_mates(adapter, SAMPLES)


def test_packed_rows_equal_padded_rows(adapter: TextAdapter, family: str) -> None:
    padded = copy.copy(adapter)
    padded.collator = copy.copy(adapter.collator)
    padded.collator.packed = False
    torch.testing.assert_close(
        log_probs(adapter, SAMPLES), log_probs(padded, SAMPLES), rtol=1e-5, atol=1e-5
    )
    inputs = adapter.collate(SAMPLES, [0] * 5)
    assert (len(inputs["call"]["input_ids"]) == 1) == (family not in PLAIN_ROWS)
    assert adapter.size(SAMPLES) == inputs["call"]["input_ids"].numel()
    assert padded.size(SAMPLES) == padded.collate(SAMPLES, [0] * 5)["call"]["input_ids"].numel()


def test_equals_an_independent_plain_computation(
    adapter: TextAdapter, folder_of: Callable[[str], Path], family: str, tmp_path: Path
) -> None:
    """The library's own model in float64, LoRA read back from disk by peft."""
    adapter.save(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(folder_of(family), dtype=torch.float64)
    plain = PeftModel.from_pretrained(base, tmp_path).double().eval()
    inputs = adapter.encode(adapter.collate(SAMPLES, [0] * 5))
    scored = adapter.log_probs(adapter.policy, inputs)
    assert scored.tokens is not None
    for row, sample in enumerate(SAMPLES):
        with torch.no_grad():
            expected = plain_log_probs(plain, adapter.collator.tokens(sample))
        mine = scored.tokens.log_probs[row][scored.tokens.mask[row]]
        torch.testing.assert_close(mine.double(), expected, rtol=1e-4, atol=1e-4)
        assert scored.lengths[row] == len(expected)
        assert scored.log_probs[row].item() == pytest.approx(expected.sum().item(), rel=1e-5)


def test_gradients_equal_an_independent_plain_computation(adapter: TextAdapter) -> None:
    mine = gradients(adapter, log_probs(adapter, SAMPLES[:2])[0])
    tokens = adapter.collator.tokens(SAMPLES[0])
    plain = gradients(adapter, plain_log_probs(adapter.policy, tokens).sum())
    assert_same(mine, plain)


def test_one_batch_can_be_overfitted(folder_of: Callable[[str], Path], family: str) -> None:
    contract.one_batch_can_be_overfitted(load_text(folder_of(family), lora={"r": 4}), SAMPLES[:2])


def test_reference_by_adapter_off_and_by_frozen_copy_agree(adapter: TextAdapter) -> None:
    contract.references_agree(adapter, SAMPLES)


def test_adapter_trained_on_keeps_what_it_was_as_reference(
    adapter: TextAdapter, folder_of: Callable[[str], Path], family: str, tmp_path: Path
) -> None:
    adapter.save(tmp_path)
    contract.trains_on(adapter, load_text(folder_of(family), adapter=tmp_path), SAMPLES)


def test_merged_export_loads_in_plain_transformers(
    adapter: TextAdapter, tmp_path: Path, family: str
) -> None:
    adapter.export_merged(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    dropouts = [v for n, v in vars(plain.config).items() if "drop" in n and isinstance(v, float)]
    assert 0.1 in dropouts or family == "mamba"  # published as it was
    with torch.no_grad():
        expected = plain_log_probs(plain, adapter.collator.tokens(SAMPLES[0])).sum()
    mine = log_probs(adapter, SAMPLES[:1])[0]
    assert mine.item() == pytest.approx(expected.item(), rel=1e-4)


def test_full_fine_tuning_saves_and_loads(
    folder_of: Callable[[str], Path], family: str, tmp_path: Path
) -> None:
    adapter = load_text(folder_of(family))
    assert all(p.requires_grad for p in adapter.policy.parameters())
    with pytest.raises(ValueError, match="frozen copy"), adapter.reference_mode():
        pass
    before = log_probs(adapter, SAMPLES)
    before.sum().backward()
    plain = copy.deepcopy(adapter.policy)
    plain.zero_grad()
    torch.stack(
        [plain_log_probs(plain, adapter.collator.tokens(s)).sum() for s in SAMPLES]
    ).sum().backward()
    expected = dict(plain.named_parameters())
    for name, weight in adapter.policy.named_parameters():
        if expected[name].grad is None or weight.grad is None:
            assert weight.grad is expected[name].grad
            continue
        scale = expected[name].grad.abs().max().item()
        torch.testing.assert_close(
            weight.grad, expected[name].grad, rtol=1e-3, atol=1e-4 * scale + 1e-6
        )
    torch.optim.SGD(adapter.policy.parameters(), 1e-4).step()
    adapter.save(tmp_path)
    torch.testing.assert_close(
        log_probs(load_text(tmp_path), SAMPLES), log_probs(adapter, SAMPLES), rtol=1e-5, atol=1e-5
    )


def test_greedy_sampling_equals_generate(adapter: TextAdapter) -> None:
    prompts = [SAMPLES[0].prompt, SAMPLES[3].prompt]
    mine = adapter.sample(prompts, [0, 1], max_new_tokens=6, temperature=0)
    lm = causal_lm(adapter.policy).eval()
    for prompt, sample in zip(prompts, mine, strict=True):
        ids = torch.tensor([adapter.collator.prompt_ids(prompt)])
        out = lm.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=adapter.stop_ids,
            suppress_tokens=list(range(len(adapter.tokenizer), 416)),
        )
        text = adapter.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert sample == Sample(prompt, (Text(text),))


def test_workers_get_no_model(adapter: TextAdapter) -> None:
    collate, size = pickle.loads(pickle.dumps((adapter.collate, adapter.size)))
    assert len(pickle.dumps(collate)) < 200_000
    assert size(SAMPLES) == adapter.size(SAMPLES)
    assert torch.equal(collate(SAMPLES, [0] * 5)["targets"], adapter.collate(SAMPLES)["targets"])
