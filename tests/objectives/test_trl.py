"""Values and gradients agree with TRL's trainers, whose loss is called here without a trainer.

`DPOTrainer._compute_loss` reads log-probabilities from a model's output, so a stub of a model that
returns given ones, and a stub of a trainer that holds the options, are all it takes.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from objectives.given import log_probs
from torch import Tensor

from mmalign.objectives import Batch, LogProbs, TokenLogProbs, objective
from mmalign.objectives.trl import CPO, DPO, KTO, ONLINE, ORPO, TPO

ROWS, WIDTH = 4, 6


class Untrained(torch.nn.Module):
    """What the trainers ask of their model beyond its output."""

    is_gradient_checkpointing = False


def given() -> dict[str, Tensor]:
    """(2b t), chosen above rejected, as TRL lays them out; zero where there is no token."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return -3 * torch.rand(2 * ROWS, WIDTH, generator=generator)

    mask = torch.arange(WIDTH) < torch.tensor([6, 3, 4, 2, 3, 5, 4, 6])[:, None]
    policy, reference, collision = (draw() * mask for _ in range(3))
    return {"policy": policy, "reference": reference, "collision": collision, "mask": mask}


def trl_loss(options: dict[str, Any], policy: Tensor) -> Tensor:
    from trl import DPOTrainer

    data = given()
    zeros = torch.zeros_like(policy)

    def model_of(log_probabilities: Tensor) -> Any:
        output = SimpleNamespace(
            log_probs=log_probabilities,
            log_sum_sq_probs=data["collision"],
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
        )
        return lambda **_: output

    accelerator = SimpleNamespace(
        device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda x: x
    )
    trainer = SimpleNamespace(
        model=Untrained().eval(),
        ref_model=model_of(data["reference"]),
        accelerator=accelerator,
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        args=SimpleNamespace(
            gradient_checkpointing=False, gradient_checkpointing_kwargs=None, discopop_tau=0.5
        ),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
        beta=0.3,
        loss_types=options.get("loss_type", ["sigmoid"]),
        **{
            "loss_weights": [1.0],
            "label_smoothing": 0.0,
            "ld_alpha": None,
            "f_divergence_type": "reverse_kl",
            "use_weighting": False,
            **options,
        },
    )
    # One prompt token, which every completion follows; the mask of a model's outputs is shifted.
    completion = torch.cat([torch.zeros(2 * ROWS, 1), data["mask"]], dim=1).long()
    inputs = {
        "input_ids": torch.zeros_like(completion),
        "attention_mask": torch.ones_like(completion),
        "completion_mask": completion,
    }
    loss: Tensor = DPOTrainer._compute_loss(trainer, model_of(policy), inputs, False)
    return loss


def our_loss(spec: str, policy: Tensor) -> Tensor:
    data = given()

    def side(rows: slice) -> LogProbs:
        mask = data["mask"][rows]
        tokens = TokenLogProbs(
            policy[rows],
            data["reference"][rows],
            mask,
            torch.ones_like(policy[rows]),
            {"collision": data["collision"][rows]},
        )
        sums = policy[rows].sum(1), data["reference"][rows].sum(1)
        return LogProbs(*sums, length=mask.sum(1), tokens=tokens)

    return objective(spec)(side(slice(0, ROWS)), side(slice(ROWS, None))).mean()


@pytest.mark.parametrize("spec", DPO)
def test_pairs_as_in_trl(spec: str) -> None:
    def both(loss: Any, about: Any) -> tuple[Tensor, Tensor]:
        policy, mask = given()["policy"].requires_grad_(), given()["mask"]
        value = loss(about, policy)
        return value.detach(), torch.autograd.grad(value, policy)[0] * mask

    ours, theirs = both(our_loss, spec), both(trl_loss, DPO[spec])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_label_smoothing_of_trls_sigmoid_is_ignored() -> None:
    options = {"loss_type": ["sigmoid"], "label_smoothing": 0.1}
    policy = given()["policy"]
    torch.testing.assert_close(trl_loss(options, policy), our_loss("dpo(beta=0.3)", policy))
    assert (our_loss("cdpo(beta=0.3, label_smoothing=0.1)", policy) - trl_loss(options, policy)) > 0


# ---- the trainers that compute log-probabilities themselves are given logits


VOCABULARY = 5


def logits(branches: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random logits (branches b, t + 1, v), token ids (branches b, t + 1) and lengths, float64; the
    first token is the prompt's."""
    generator = torch.Generator().manual_seed(1)
    rows = branches * ROWS
    ids = torch.randint(VOCABULARY, (rows, WIDTH + 1), generator=generator)
    lengths = torch.randint(2, WIDTH + 1, (rows,), generator=generator)
    shape = (rows, WIDTH + 1, VOCABULARY)
    return torch.randn(shape, generator=generator, dtype=torch.float64), ids, lengths


def candidates(scores: Tensor, ids: Tensor, lengths: Tensor, order: list[int]) -> Batch:
    """Preferences of the branches in this order, best first."""
    each = scores[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    mask = torch.arange(WIDTH) < lengths[:, None]
    sums = torch.where(mask, each, 0.0).sum(1).view(-1, ROWS)[order].T
    length = lengths.view(-1, ROWS)[order].T
    grades = torch.arange(len(order), 0, -1).double().expand(ROWS, -1)
    return Batch(log_probs(sums, torch.full_like(sums, torch.nan), length), grades)


def agree(ours: Tensor, theirs: Tensor, scores: Tensor, within: float = 1e-9) -> None:
    """Values and gradients."""
    found = [
        (loss.detach().double(), *torch.autograd.grad(loss, scores)) for loss in (ours, theirs)
    ]
    torch.testing.assert_close(*found, rtol=within, atol=within)


def as_is(tensor: Tensor) -> Tensor:
    return tensor


def sides(ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """A batch of pairs as CPO's and ORPO's collator makes it."""
    mask = torch.arange(WIDTH + 1) <= lengths[:, None]
    labels = ids.where(mask & (torch.arange(WIDTH + 1) > 0), -100)
    columns = {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}
    return {
        f"{side}_{name}": column.view(2, ROWS, -1)[i]
        for i, side in enumerate(("chosen", "rejected"))
        for name, column in columns.items()
    }


def pairwise_trainer(trainer: Any, **options: Any) -> Any:
    """What the two trainers' loss reads of themselves."""
    stub = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=as_is),
        beta=0.3,
        is_encoder_decoder=False,
        aux_loss_enabled=False,
        pad_token_id=0,
        padding_value=0,
        concatenated_inputs=trainer.concatenated_inputs,
        get_batch_logps=trainer.get_batch_logps,
        **options,
    )
    for name in ("concatenated_forward", "cpo_loss", "odds_ratio_loss"):
        if hasattr(trainer, name):
            setattr(stub, name, getattr(trainer, name).__get__(stub))
    return stub


def pairwise_loss(trainer: Any, options: dict[str, Any]) -> tuple[Batch, Tensor, Tensor]:
    """The batch for us, the trainer's loss and the logits that both come from."""
    scores, ids, lengths = logits(2)
    scores.requires_grad_()
    stub = pairwise_trainer(trainer, **options)
    model = lambda *_, **__: SimpleNamespace(logits=scores)  # noqa: E731 - a model in a line
    loss = trainer.get_batch_loss_metrics(stub, model, sides(ids, lengths))[0]
    return candidates(scores, ids, lengths, [0, 1]), loss, scores


@pytest.mark.parametrize("spec", CPO)
@pytest.mark.filterwarnings("ignore")
def test_cpo_as_in_trl(spec: str) -> None:
    from trl.experimental.cpo import CPOTrainer

    usual = {"loss_type": "sigmoid", "alpha": 0.0, "label_smoothing": 0.0}
    batch, theirs, scores = pairwise_loss(CPOTrainer, {**usual, **CPO[spec]})
    agree(objective(spec).loss(batch).mean(), theirs, scores)


@pytest.mark.parametrize("spec", ORPO)
@pytest.mark.filterwarnings("ignore")
def test_orpo_as_in_trl(spec: str) -> None:
    from trl.experimental.orpo import ORPOTrainer

    batch, theirs, scores = pairwise_loss(ORPOTrainer, dict(ORPO[spec]))
    agree(objective(spec).loss(batch).mean(), theirs, scores, within=1e-6)


@pytest.mark.parametrize("spec", TPO)
@pytest.mark.filterwarnings("ignore")
def test_triple_preferences_as_in_trl(spec: str) -> None:
    from trl.experimental.tpo import TPOTrainer

    scores, ids, lengths = logits(3)
    scores.requires_grad_()
    trainer = SimpleNamespace(
        model=Untrained().eval(),
        accelerator=SimpleNamespace(gather_for_metrics=as_is, gather=as_is),
        aux_loss_enabled=False,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
        beta=0.3,
        label_smoothing=0.0,
        **{"loss_type": "sigmoid", "tpo_alpha": 1.0, **TPO[spec]},
    )
    mask = (torch.arange(WIDTH + 1) <= lengths[:, None]).long()
    completion = mask * (torch.arange(WIDTH + 1) > 0)
    inputs = {"input_ids": ids, "attention_mask": mask, "completion_mask": completion}
    model = lambda **_: SimpleNamespace(logits=scores)  # noqa: E731 - a model in a line
    theirs = TPOTrainer._compute_loss(trainer, model, inputs, False)
    batch = candidates(scores, ids, lengths, [2, 0, 1])  # gold, chosen, rejected
    agree(objective(spec).loss(batch).mean(), theirs, scores)


@pytest.mark.parametrize("spec", KTO)
def test_kto_as_in_trl(spec: str) -> None:
    from trl import KTOTrainer

    data = given()
    policy, reference = data["policy"], data["reference"]
    label = torch.tensor([1, 0, 1, 1, 0, 1, 0, 0])
    zeros = torch.zeros_like(policy)

    def model_of(log_probabilities: Tensor) -> Any:
        output = SimpleNamespace(
            log_probs=log_probabilities, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )
        return lambda **_: output

    mismatched = {"policy": policy.sum(1).roll(1), "reference": reference.sum(1).roll(3) - 0.4}
    model, other = model_of(policy.requires_grad_()), model_of(reference)
    trainer = SimpleNamespace(
        model=Untrained().eval(),
        ref_model=other,
        _compute_kl_logps=lambda m, _: mismatched["policy" if m is model else "reference"],
        accelerator=SimpleNamespace(
            device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x
        ),
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        calculate_KL=KTO[spec]["loss_type"] == "kto",
        args=SimpleNamespace(gradient_checkpointing=False, gradient_checkpointing_kwargs=None),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
        beta=0.3,
        **{"desirable_weight": 1.0, "undesirable_weight": 1.0, **KTO[spec]},
    )
    completion = torch.cat([torch.zeros(2 * ROWS, 1), data["mask"]], dim=1).long()
    inputs = {
        "input_ids": torch.zeros_like(completion),
        "attention_mask": torch.ones_like(completion),
        "completion_mask": completion,
        "label": label,
    }
    theirs = KTOTrainer._compute_loss(trainer, model, inputs, False)

    column = log_probs(policy.sum(1)[:, None], reference.sum(1)[:, None])
    view = log_probs(mismatched["policy"][:, None], mismatched["reference"][:, None])
    batch = Batch(column, label[:, None].float(), {"mismatched": view})
    ours = objective(spec).loss(batch).mean()
    found = [(loss.detach(), *torch.autograd.grad(loss, policy)) for loss in (ours, theirs)]
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spec", ONLINE)
@pytest.mark.filterwarnings("ignore")
def test_online_dpo_as_in_trl(spec: str) -> None:
    """Its loss is computed inside a training step, whose answers and rewards are given here."""
    from trl.experimental.online_dpo import OnlineDPOTrainer

    data = given()
    policy, mask = data["policy"].requires_grad_(), data["mask"]
    ids = torch.zeros(2 * ROWS, WIDTH, dtype=torch.long)
    first = torch.arange(2 * ROWS, 0, -1).double()  # of both answers the first is the better one
    model = Untrained()
    trainer = SimpleNamespace(
        model=model,
        ref_model=model.eval,
        eos_token_ids=[1],
        _generate=lambda *_: (ids, ids, ids, mask.long(), None),
        _forward=lambda which, *_: policy if which is model else data["reference"],
        processing_class=SimpleNamespace(batch_decode=lambda rows, **_: [""] * len(rows)),
        _calculate_rewards_from_functions=lambda **_: first,
        reward_funcs=None,
        stats=defaultdict(list),
        accelerator=SimpleNamespace(
            gather_for_metrics=as_is, backward=lambda loss: loss.backward()
        ),
        state=SimpleNamespace(global_step=0),
        beta=0.3,
        args=SimpleNamespace(
            use_vllm=False,
            missing_eos_penalty=None,
            torch_empty_cache_steps=None,
            optim="adamw_torch",
            n_gpu=1,
            gradient_accumulation_steps=1,
            **ONLINE[spec],
        ),
    )
    theirs = OnlineDPOTrainer.training_step(trainer, model, {"prompt": [""] * ROWS})
    assert policy.grad is not None
    own = given()["policy"].requires_grad_()
    ours = our_loss(spec, own)
    torch.testing.assert_close(ours.detach(), theirs, rtol=1e-6, atol=1e-6)
    gradient = torch.autograd.grad(ours, own)[0] * mask
    torch.testing.assert_close(gradient, policy.grad * mask, rtol=1e-6, atol=1e-6)
