"""Rejected answers get token weights from two models, which are fine-tuned on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import save_model

from mmalign import cli
from mmalign.adapters.text import load_text
from mmalign.data.opening import open_dataset
from mmalign.data.store import write_store
from mmalign.data_builders.critical_tokens import Estimation, build, weighed
from mmalign.errors import UserError
from mmalign.evaluation.critical_tokens import critical_scores
from mmalign.objectives import objective
from mmalign.records import Message, Preference, Sample, Span, Text, pair
from mmalign.reference import AdapterOff
from mmalign.training.batches import Plan, Steps
from mmalign.training.step import Scorer, preference_step

PROMPT = (Message("user", (Text("Name three colours."),)),)
ENDINGS = ("jumps", "over", "quick", "lazy")
PAIRS = [
    pair(
        Sample(PROMPT, (Text(f"red and green {end}"),)),
        Sample(PROMPT, (Text(f"red and dog {end}"),)),
    )
    for end in ENDINGS
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"))


def test_weights_stand_on_the_characters_of_their_tokens() -> None:
    answer = Sample(PROMPT, (Text("ab cd"), Text(" ef")))
    places = [(0, 2), (2, 5), (5, 8), None]
    found = weighed(answer, places, [0.9, 0.25, 0.5, 0.1])
    assert found.response == (
        Text("ab cd", (Span(0, 2, 0.1), Span(2, 5, 0.75))),
        Text(" ef", (Span(0, 3, 0.5),)),
    )


def test_the_command_finds_the_planted_word_and_its_weights_train(
    model: Path, tmp_path: Path
) -> None:
    write_store(PAIRS, tmp_path / "pairs")
    out = tmp_path / "weighted"
    tune = ("--tune-steps", "20", "--tune-rate", "0.02", "--tune-batch", "4")
    command = ["build", "critical-tokens", str(tmp_path / "pairs"), "--model", str(model), *tune]
    assert cli.main([*command, "--out", str(out)]) == 0
    made = list(open_dataset(out))
    assert len(made) == len(PAIRS)
    reader = load_text(model, lora={"r": 2})
    for before, after in zip(PAIRS, made, strict=True):
        assert after.chosen == before.chosen
        [text] = after.rejected.response
        assert isinstance(text, Text)
        assert text.text.split()[2] == "dog"
        heaviest = max(text.weights, key=lambda span: span.weight)
        assert 7 <= heaviest.start <= 10  # in " dog", which no right answer says
        assert after.source.builder == "critical_tokens"
        weights = reader.collator.tokens(after.rejected).weights
        assert max(weights) == pytest.approx(heaviest.weight, abs=1e-5)
    loss = objective("critical_token_dpo()")
    plan = Plan(reader.collate, reader.size, loss.needs, batch_size=4, budget=10_000)
    [micro] = Steps(made, plan)[0].micro_batches
    losses, _ = preference_step(reader, Scorer(reader), micro, loss, AdapterOff(reader), {})
    torch.testing.assert_close(losses, torch.full_like(losses, torch.tensor(2.0).log().item()))


def test_given_models_are_used_as_they_are(model: Path, tmp_path: Path) -> None:
    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        policy = load_text(model, lora={"r": 2})
        with torch.no_grad():
            for weight in policy.policy.parameters():
                if weight.requires_grad:
                    weight.copy_(0.1 * torch.randn(weight.shape))
        folder = tmp_path / str(seed)
        folder.mkdir()
        policy.save(folder)
        folders.append(folder)
    estimation = Estimation(positive=folders[0], negative=folders[1])
    [made] = build(PAIRS[:1], model=str(model), estimation=estimation, strength=0.5)
    assert isinstance(made, Preference)
    right, wrong = (load_text(model, adapter=folder) for folder in folders)
    [scores] = critical_scores(right, wrong, [PAIRS[0].rejected], strength=0.5)
    [text] = made.rejected.response
    assert isinstance(text, Text)
    found = [span.weight for span in text.weights]
    assert found == pytest.approx((1 - scores[: len(found)]).tolist(), abs=1e-5)


def test_one_model_alone_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one of the two models"):
        list(build(PAIRS, model=str(model), estimation=Estimation(positive=tmp_path)))
