"""One optimiser step costs and moves the same as one of TRL's `DPOTrainer`, on the same data.

Both libraries run as their users run them: TRL's dataset preparation, collator, trainer and loop on
one side; our collator, packed rows, objective and loop on the other. They begin with the same
weights of model and LoRA. The losses alone are compared in `objectives/test_trl.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from tiny_models import CHATML, save_model
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mmalign.adapters.protocol import Adapter
from mmalign.adapters.text import TextAdapter, load_text
from mmalign.objectives import objective
from mmalign.records import PLAIN, Message, Preference, Sample, Text, pair
from mmalign.reference import AdapterOff
from mmalign.training.log import JsonLines
from mmalign.training.loop import train
from mmalign.training.options import TrainingOptions

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and transformers' own

# Ends with the end-of-turn token, so that both libraries score the same tokens.
NO_TAIL = (
    "{% for m in messages %}{% if not loop.first %}\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}"
)

LORA = {"r": 8, "alpha": 16.0, "dropout": 0.0}

# Prompts and responses of many lengths; one prompt comes twice.
TEXTS = [
    ("Name three colours.", "Red, green and blue are three colours.", "The dog"),
    ("What is the capital of France?", "Paris.", "the quick brown fox jumps over the lazy dog"),
    ("Name three colours.", "blue", "What is the capital of the quick brown fox?"),
    ("think", "The capital of France is Paris.", "0123456789 0123456789"),
]

OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo(beta=0.1)": {"loss_type": ["sigmoid"]},
    "ipo(beta=0.1)": {"loss_type": ["ipo"]},
    "ln_dpo(beta=0.1)": {"loss_type": ["sigmoid_norm"]},
    "hinge(beta=0.1)": {"loss_type": ["hinge"]},
    "apo_zero(beta=0.1)": {"loss_type": ["apo_zero"]},
    "robust(dpo(beta=0.1), flip_rate=0.2)": {"loss_type": ["robust"], "label_smoothing": 0.2},
    "dpo(beta=0.1) + 0.2*nll(reduction='tokens')": {
        "loss_type": ["sigmoid", "sft"],
        "loss_weights": [1.0, 0.2],
    },
    "wpo(dpo(beta=0.1), clamp=False)": {"loss_type": ["sigmoid"], "use_weighting": True},
}


@dataclass(frozen=True)
class Found:
    """The mean loss of a step, and its gradient by the name of the weight."""

    loss: float
    gradients: dict[str, Tensor]


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    disable_progress_bars()


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A Llama (which SmolLM2 is) with a chat template, on disk. TRL switches `nn.Dropout` off but
    not the attention's own dropout, so the model has none."""
    made: dict[str, Path] = {}

    def find(template: str) -> Path:
        if template not in made:
            folder = tmp_path_factory.mktemp("llama")
            made[template] = save_model(folder, template=template, attention_dropout=0.0)
        return made[template]

    return find


def plain_pairs() -> list[Preference]:
    def sample(question: str, answer: str) -> Sample:
        return Sample((Message(PLAIN, (Text(question),)),), (Text(" " + answer),))

    return [pair(sample(q, chosen), sample(q, rejected)) for q, chosen, rejected in TEXTS]


def chat_pairs() -> list[Preference]:
    def sample(question: str, answer: str) -> Sample:
        turns = [("system", "You think."), ("user", question)]
        return Sample(tuple(Message(r, (Text(t),)) for r, t in turns), (Text(answer),))

    return [pair(sample(q, chosen), sample(q, rejected)) for q, chosen, rejected in TEXTS]


def plain_rows() -> list[dict[str, Any]]:
    # The space begins a token here; at a prompt's end it would not (see the last test).
    return [{"prompt": q, "chosen": " " + c, "rejected": " " + r} for q, c, r in TEXTS]


def chat_rows() -> list[dict[str, Any]]:
    def turn(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    return [
        {
            "prompt": [turn("system", "You think."), turn("user", q)],
            "chosen": [turn("assistant", c)],
            "rejected": [turn("assistant", r)],
        }
        for q, c, r in TEXTS
    ]


FORMATS = {"plain": (plain_pairs, plain_rows), "chat": (chat_pairs, chat_rows)}


def our_adapter(folder: Path, **options: Any) -> TextAdapter:
    """As after some training: the LoRA does something, so log-ratios and all gradients differ
    from zero."""
    adapter = load_text(folder, lora=LORA, **options)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in adapter.policy.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.05 * torch.randn(weight.shape, generator=draws))
    return adapter


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@contextmanager
def gradients_of(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The gradients as they are when an optimiser is about to use them, by the weight's name."""
    caught: dict[str, Tensor] = {}

    def catch(*_: Any) -> None:
        caught.update((name, p.grad.clone()) for name, p in trained(model).items())

    handle = register_optimizer_step_pre_hook(catch)
    try:
        yield caught
    finally:
        handle.remove()


def our_step(adapter: Adapter, data: list[Preference], spec: str, out: Path) -> Found:
    with gradients_of(adapter.policy) as gradients:
        our_loop(adapter, data, spec, out, steps=1, max_grad_norm=0.0)
    return Found(JsonLines(out / "metrics.jsonl").rows()[0]["loss"], gradients)


def our_loop(
    adapter: Adapter, data: list[Preference], spec: str, out: Path, **options: Any
) -> None:
    """Every step sees all the data."""
    constant: dict[str, Any] = {"schedule": "constant", "warmup": 0.0, **options}
    settings = TrainingOptions(batch_size=len(data), **constant)
    train(adapter, data, objective(spec), settings, out, reference=AdapterOff(adapter))


def trl_trainer(
    folder: Path,
    rows: Sequence[dict[str, Any]] | Dataset,
    start: nn.Module,
    out: Path,
    *,
    targets: str = "all-linear",
    **options: Any,
) -> Any:
    """TRL's trainer with the LoRA weights of `start`, on the layers called `targets`. Every step
    sees all rows."""
    settings = {
        "per_device_train_batch_size": len(rows),
        "max_steps": 1,
        "max_length": None,
        "beta": 0.1,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        **options,
    }
    trainer = trl.DPOTrainer(
        model=str(folder),
        args=trl.DPOConfig(str(out), **settings),
        train_dataset=rows if isinstance(rows, Dataset) else Dataset.from_list(list(rows)),
        peft_config=LoraConfig(
            r=LORA["r"],
            lora_alpha=LORA["alpha"],
            lora_dropout=LORA["dropout"],
            target_modules=targets,
            task_type="CAUSAL_LM",
        ),
    )
    mine, theirs = trained(start), trained(trainer.model)
    assert mine.keys() == theirs.keys()
    with torch.no_grad():
        for name, weight in theirs.items():
            weight.copy_(mine[name])
    return trainer


def trl_step(
    folder: Path, rows: Sequence[dict[str, Any]], start: nn.Module, out: Path, **options: Any
) -> Found:
    trainer = trl_trainer(folder, rows, start, out, **options)
    with gradients_of(trainer.model) as gradients:
        loss = trainer.train().training_loss
    return Found(loss, gradients)


def assert_equal(ours: Found, theirs: Found, tolerance: float = 1e-5) -> None:
    """Relative difference of the loss, and of every weight's gradient in the Euclidean norm."""
    assert ours.loss == pytest.approx(theirs.loss, rel=tolerance)
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name, gradient in theirs.gradients.items():
        assert gradient.norm() > 0, name
        difference = (ours.gradients[name] - gradient).norm() / gradient.norm()
        assert difference < tolerance, f"{name}: {difference:.1e}"


@pytest.mark.parametrize("spec", OBJECTIVES)
@pytest.mark.parametrize("kind", FORMATS)
def test_one_step_is_trls(
    kind: str, spec: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    pairs, rows = FORMATS[kind]
    folder = folder_of(NO_TAIL)
    adapter = our_adapter(folder)
    theirs = trl_step(folder, rows(), adapter.policy, tmp_path / "trl", **OBJECTIVES[spec])
    assert_equal(our_step(adapter, pairs(), spec, tmp_path / "mmalign"), theirs)


def test_steps_of_the_loop_are_trls(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Clipping, AdamW and its decoupled weight decay included; ours in several micro-batches."""
    folder = folder_of(NO_TAIL)
    adapter = our_adapter(folder)
    before = {name: p.detach().clone() for name, p in trained(adapter.policy).items()}
    shared = {"learning_rate": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.5}
    trainer = trl_trainer(
        folder, chat_rows(), adapter.policy, tmp_path / "trl", max_steps=3, **shared
    )
    trainer.train()
    data, spec, budget = chat_pairs(), "dpo(beta=0.1)", 80
    assert adapter.size([s for p in data for s in p.candidates]) > budget
    our_loop(adapter, data, spec, tmp_path / "mmalign", steps=3, micro_batch=budget, **shared)
    ours, theirs = trained(adapter.policy), trained(trainer.model)
    for name, start in before.items():
        moved = (theirs[name] - start).norm()
        assert moved > 0, name
        assert (ours[name] - theirs[name]).norm() < 1e-3 * moved, name


def test_truncated_responses_are_trls(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder, limit = folder_of(NO_TAIL), 30
    adapter = our_adapter(folder, max_length=limit, truncate=True)
    whole = our_adapter(folder).collator
    samples = [sample for preference in chat_pairs() for sample in preference.candidates]
    cut = [adapter.collator.tokens(sample) != whole.tokens(sample) for sample in samples]
    assert True in cut
    assert False in cut
    rows = chat_rows()
    theirs = trl_step(folder, rows, adapter.policy, tmp_path / "trl", max_length=limit)
    assert_equal(our_step(adapter, chat_pairs(), "dpo(beta=0.1)", tmp_path / "mmalign"), theirs)


def test_trl_also_scores_what_the_template_writes_after_the_turn(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """ChatML ends a turn with a newline behind the end-of-turn token. No model has to write it,
    since generation stops before it, and we leave it out."""
    folder = folder_of(CHATML)
    adapter = our_adapter(folder)
    trainer = trl_trainer(folder, chat_rows(), adapter.policy, tmp_path)
    newline = adapter.tokenizer("\n", add_special_tokens=False).input_ids
    for row, preference in zip(trainer.train_dataset, chat_pairs(), strict=True):
        for name, sample in zip(("chosen", "rejected"), preference.candidates, strict=True):
            tokens = adapter.collator.tokens(sample)
            assert row["prompt_ids"] == list(tokens.prompt)
            assert row[f"{name}_ids"] == [*tokens.completion, *newline]


def test_trl_cuts_a_prompt_that_would_merge_with_the_response(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """A space at the prompt's end is a token of its own in generation, and part of the response's
    first token when both are tokenised together. We keep what generation sees."""
    folder = folder_of(NO_TAIL)
    adapter = our_adapter(folder)
    row = {"prompt": "The capital of France is ", "chosen": "Paris.", "rejected": "blue"}
    trainer = trl_trainer(folder, [row], adapter.policy, tmp_path)
    question = (Message(PLAIN, (Text(row["prompt"]),)),)
    ours = adapter.collator.tokens(Sample(question, (Text(row["chosen"]),)))
    theirs = trainer.train_dataset[0]
    space = adapter.tokenizer(" ", add_special_tokens=False).input_ids
    assert list(ours.prompt) == [*theirs["prompt_ids"], *space]
    assert adapter.tokenizer.decode(ours.completion) == "Paris.</s>"
    assert adapter.tokenizer.decode(theirs["chosen_ids"]) == " Paris.</s>"
