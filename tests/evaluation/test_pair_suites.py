"""The diagnostics' suites, from data and models to figures, words and page, on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion
import tiny_pipelines
import torch
from peft import PeftModel
from tiny_image_models import save_image_model
from tiny_models import save_model
from tiny_vision_language import picture, save_family
from transformers import AutoModelForCausalLM

from mmalign import cli
from mmalign.adapters.autoregressive import evaluating
from mmalign.adapters.loading import Modality, load_adapter
from mmalign.adapters.text import load_text
from mmalign.adapters.vision_language import load_vision_language
from mmalign.data.store import write_store
from mmalign.evaluation.credit import credited
from mmalign.objectives import objective
from mmalign.records import Message, Preference, Sample, Text, pair
from mmalign.reference import FrozenCopy
from mmalign.report.credit import credit
from mmalign.training.align import align
from mmalign.training.options import TrainingOptions
from mmalign.training.seeds import derive

COLOURS = ("red", "green", "blue", "brown", "lazy", "quick")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


def evaluate(suite: str, *options: str | Path) -> dict[str, Any]:
    """Run a suite and return its metrics.json."""
    assert cli.main(["evaluate", suite, "--out", "run", *map(str, options)]) == 0
    found: dict[str, Any] = json.loads(Path("run/metrics.json").read_text())
    return found


def values(metrics: dict[str, Any], stage: str) -> dict[str, float]:
    return {name: figure["value"] for name, figure in metrics[stage].items()}


def page() -> str:
    return Path("run/report.html").read_text(encoding="utf-8")


def trained(policy: Any, data: list[Preference], out: Path, spec: str, **options: Any) -> Path:
    """The folder of a LoRA that was aligned to the data."""
    settings = {"batch_size": 12, "learning_rate": 2e-2, "warmup": 0.0, "steps": 15} | options
    align(policy, data, (), objective(spec), TrainingOptions(**settings), out / "run")
    (out / "lora").mkdir(parents=True)
    policy.save(out / "lora")
    return out / "lora"


# ---- language models


def asked(words: str) -> tuple[Message, ...]:
    return (Message("user", (Text(words),)),)


PAIRS = [
    pair(
        Sample(asked(f"Name {first} {second}"), (Text(f"the {first} fox"),)),
        Sample(asked(f"Name {first} {second}"), (Text(f"over {second} dog jumps"),)),
        aux={"share": 0.75},
    )
    for first in COLOURS
    for second in COLOURS
    if first != second
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def lora(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    policy = load_text(model, lora={"r": 4})
    return trained(policy, PAIRS, tmp_path_factory.mktemp("aligned"), "dpo(beta=0.1)")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pairs"
    write_store(PAIRS, folder)
    return folder


@pytest.fixture(scope="module")
def plain(model: Path, lora: Path) -> Callable[[Sample, bool], float]:
    """Summed log-probability of a response by the library alone."""
    reader = load_text(model)
    with_lora = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), lora).eval()

    def log_prob(sample: Sample, aligned: bool) -> float:
        tokens = reader.collator.tokens(sample)
        row = torch.tensor([[*tokens.prompt, *tokens.completion]])
        with torch.no_grad():
            if aligned:
                logits = with_lora(row).logits
            else:
                with with_lora.disable_adapter():
                    logits = with_lora(row).logits
        log_p = logits[0, :-1].log_softmax(-1).gather(-1, row[0, 1:, None])[:, 0]
        return log_p[len(tokens.prompt) - 1 :].sum().item()

    return log_prob


def test_ranking(
    model: Path, lora: Path, data: Path, plain: Callable[[Sample, bool], float]
) -> None:
    given = ("--model", model, "--adapter", lora, "--data", data, "--share", "share")
    metrics = evaluate("ranking", *given)
    before, after = values(metrics, "before"), values(metrics, "after")
    told = [[plain(p.chosen, aligned) - plain(p.rejected, aligned) for aligned in (False, True)]
            for p in PAIRS]  # fmt: skip
    n = len(PAIRS)
    assert before["ranking accuracy"] == pytest.approx(sum(r >= 0 for r, _ in told) / n)
    assert after["ranking accuracy"] == pytest.approx(sum(s >= 0 for _, s in told) / n)
    assert after["reward accuracy"] == pytest.approx(sum(s > r for r, s in told) / n)
    reach = 10 * torch.tensor(0.75).logit().item()  # logit(share) / beta
    ideal = sum(r + reach > 0 for r, _ in told) / n
    assert after["idealised ranking accuracy"] == pytest.approx(ideal)
    assert sum(metrics["flips"].values()) == metrics["n"] == n
    assert set(metrics["idealised"]) == {"0.01", "0.1", "1", "5", "10"}
    text = page()
    assert "What training turned" in text
    assert "histogram of margin that training gave" in text
    assert "Diagnosis" in text


def test_ranking_of_a_model_alone(model: Path, data: Path) -> None:
    metrics = evaluate("ranking", "--model", model, "--data", data, "--limit", "8")
    assert set(metrics["model"]) == {"ranking accuracy", "ranking accuracy per token"}
    assert metrics["n"] == 8


def test_likelihood(
    model: Path, lora: Path, data: Path, plain: Callable[[Sample, bool], float]
) -> None:
    metrics = evaluate("likelihood", "--model", model, "--adapter", lora, "--data", data)
    found = values(metrics, "change")
    for side in ("chosen", "rejected"):
        moved = [plain(getattr(p, side), True) - plain(getattr(p, side), False) for p in PAIRS]
        assert found[side] == pytest.approx(sum(moved) / len(moved), rel=1e-3, abs=1e-3)
    assert found["margin"] == pytest.approx(found["chosen"] - found["rejected"], rel=1e-6)
    assert "histogram of change of the chosen" in page()
    assert "Credit by token" in page()


def test_credit_by_token_sums_to_the_log_ratio(
    model: Path, lora: Path, plain: Callable[[Sample, bool], float]
) -> None:
    policy, reference = load_text(model, adapter=lora), load_text(model)
    sample = PAIRS[0].chosen
    found = credited(policy, FrozenCopy(reference, reference.policy), sample)
    assert "".join(found.pieces).startswith("the red fox")
    assert sum(found.values) == pytest.approx(plain(sample, True) - plain(sample, False), abs=1e-3)
    drawn = str(credit("Name <red>", {"chosen": found}))
    assert drawn.count("<span title=") == len(found.pieces)
    assert "Name &lt;red&gt;" in drawn


def test_likelihood_names_displacement(model: Path, data: Path, tmp_path: Path) -> None:
    """A loss that pushes both sides down, the rejected further."""
    torch.manual_seed(0)
    policy = load_text(model, lora={"r": 4})
    down = trained(policy, PAIRS, tmp_path / "down", "4*dpo(beta=0.3) + -0.1*nll(reduction='sum')")
    evaluate("likelihood", "--model", model, "--adapter", down, "--data", data)
    assert "Likelihood displacement" in page()


def test_likelihood_needs_something_to_compare_with(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", "likelihood", "--model", str(model), "--data", str(data)]) == 2
    assert "--adapter" in capsys.readouterr().err


def test_overoptimisation(model: Path, lora: Path, data: Path) -> None:
    metrics = evaluate(
        "overoptimisation", "--model", model, "--data", data, "--checkpoints", lora, lora,
        "--limit", "6", "--max-new-tokens", "5",
    )  # fmt: skip
    first, *others = metrics["course"]
    assert first["kl_per_token"] == pytest.approx(0, abs=1e-6)
    assert others[0]["kl_per_token"] > 1e-3
    assert {**others[0], "step": 0} == {**others[1], "step": 0}  # equal seeds, equal answers
    assert all(0 < row["top10_mass"] < 1 and row["tokens"] >= 1 for row in metrics["course"])
    assert "top10_entropy over step" in page()


def test_subnetworks(model: Path, lora: Path) -> None:
    metrics = evaluate("subnetworks", "--before", model, "--after", lora, "--other", lora)
    found = values(metrics, "after")
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), lora)
    new = dict(merged.merge_and_unload().named_parameters())
    old = dict(AutoModelForCausalLM.from_pretrained(model).named_parameters())
    moved = sum(
        int(((new[n].bfloat16() - old[n].bfloat16()).float().abs() > 1e-5).sum()) for n in old
    )
    assert metrics["weights"] == sum(p.numel() for p in old.values())
    assert metrics["changed"] == moved
    assert found["share of weights that moved"] == pytest.approx(moved / metrics["weights"])
    assert found["of what this run moved, moved by the other too"] == 1
    assert found["rank of the updates over the full rank"] <= 4 / 16 + 1e-6  # r over the least side
    assert "feed-forward" in page()


def test_data_faults() -> None:
    rows = [{"prompt": f"Say {i}", "chosen": "a" * (9 + i), "rejected": "bb"} for i in range(40)]
    rows.append({"prompt": "Say 0", "chosen": "same", "rejected": "same"})
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    metrics = evaluate("data-faults", "--data", "pairs.jsonl")
    found = values(metrics, "share")
    assert found["chosen is the longer one"] == 1
    assert found["identical pairs"] == pytest.approx(1 / 41)
    for words in ("Length-biased data", "Identical pairs", "length alone predicts the label"):
        assert words in page()


# ---- models that see


ANSWERS = ("a red fox", "the lazy dog")
TWO = (picture(0), picture(1))


def seen(image: Any, words: str, answer: str) -> Sample:
    return Sample((Message("user", (image, Text(words))),), (Text(answer),))


def about_images(count: int, *, blind: bool) -> list[Preference]:
    """Which of two answers is right depends on the image; or, where `blind`, never does."""
    made = []
    for number in range(count):
        image = number % 2
        right = 0 if blind else image
        words = f"What is it {number}?"
        made.append(
            pair(
                seen(TWO[image], words, ANSWERS[right]), seen(TWO[image], words, ANSWERS[1 - right])
            )
        )
    return made


@pytest.mark.parametrize("blind", [True, False])
def test_images_that_do_not_matter_are_named(tmp_path: Path, blind: bool) -> None:
    """Two images that never decide are as good as blank ones."""
    llava, made = save_family(tmp_path / "llava", "llava"), about_images(24, blind=blind)
    torch.manual_seed(0)
    policy = load_vision_language(llava, lora={"r": 8})
    lora = trained(policy, made, tmp_path / "aligned", "dpo(beta=0.5)", steps=20, batch_size=24)
    write_store(about_images(60, blind=blind), tmp_path / "pairs")
    given = ("--model", llava, "--adapter", lora, "--data", tmp_path / "pairs")
    metrics = evaluate("image-ablation", *given)
    found = values(metrics, "accuracy")
    assert found["with the image"] == 1
    assert (found["without it"] == 1) if blind else (found["without it"] < 0.7)
    assert ("Images do not matter" in page()) == blind


# ---- models that make images


def drawn_from(seed: int) -> Preference:
    return pair(
        *(tiny_diffusion.sample("a red cat", tiny_diffusion.picture(seed + i)) for i in (0, 1))
    )


DRAWN = [drawn_from(seed) for seed in (0, 10, 20)]


@pytest.fixture(params=["image", "image-tokens"])
def maker(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, list[str]]:
    """An adapter whose LoRA was shaken, and the options that name it and the pairs."""
    modality: Modality = request.param
    folder = tmp_path / "model"
    if modality == "image":
        tiny_pipelines.tiny("stable_diffusion").save_pretrained(folder)
    else:
        save_image_model(folder, "janus")
    draws = {"draws": 10} if modality == "image" else {}
    fresh = load_adapter(modality, str(folder), lora={"r": 2}, **draws)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in fresh.policy.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.2)
    fresh.save(tmp_path / "lora")
    write_store(DRAWN, tmp_path / "pairs")
    options = {"modality": modality, "model": folder, "adapter": tmp_path / "lora",
               "data": tmp_path / "pairs"}  # fmt: skip
    return fresh, [f"--{name}={value}" for name, value in options.items()]


def test_images_are_ranked_by_likelihood(maker: tuple[Any, list[str]]) -> None:
    adapter, options = maker
    seeds = [derive(0, "pair", number) for number in range(3) for _ in range(2)]
    with torch.no_grad(), evaluating(adapter.policy):
        inputs = adapter.encode(adapter.collate([c for p in DRAWN for c in p.candidates], seeds))
        policy = adapter.log_probs(adapter.policy, inputs).log_probs.view(3, 2).double()
        with adapter.reference_mode():
            before = adapter.log_probs(adapter.policy, inputs).log_probs.view(3, 2).double()
    ranked = evaluate("ranking", *options)
    for stage, scores in (("before", before), ("after", policy)):
        right = (scores[:, 0] > scores[:, 1]).double().mean().item()
        assert values(ranked, stage)["ranking accuracy"] == pytest.approx(right)
    moved = values(evaluate("likelihood", *options), "change")
    chosen, rejected = (policy - before).mean(0).tolist()
    assert moved["chosen"] == pytest.approx(chosen, rel=1e-4)
    assert moved["rejected"] == pytest.approx(rejected, rel=1e-4)


def test_who_makes_images_must_be_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_store(DRAWN, tmp_path / "pairs")
    given = ["--model", str(model), "--data", str(tmp_path / "pairs")]
    assert cli.main(["evaluate", "ranking", *given]) == 2
    assert "--modality image or video" in capsys.readouterr().err
    looked = [*given, "--checkpoints", str(model), "--modality", "image-tokens"]
    assert cli.main(["evaluate", "overoptimisation", *looked]) == 2
    assert "does not answer in words" in capsys.readouterr().err
