"""From tokens to `Scored`: what all adapters of autoregressive models share.

`pack` lays tokenised samples out for one call of the model, `score` makes that call and turns its
hidden states into log-probabilities, and `examine` finds out by trying what a model can do: whether
responses may share their prompt in one row (`packing`), and whether its own tail (head, scaling,
soft-capping) can be run on chosen positions only. Axes: n samples, t response tokens, p scored
positions, s positions of a row, h hidden size.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from mmalign.adapters.packing import (
    Blocks,
    PackingError,
    Segments,
    attention_of,
    expected_windows,
    segment_inputs,
    segment_positions,
    set_attention,
    use_segments,
)
from mmalign.adapters.protocol import DIVERGENCE, PREDICTIONS, Inputs, Scored, TokenScores
from mmalign.adapters.token_log_probs import Tail, log_distributions, token_log_probs


@dataclass(frozen=True)
class Tokens:
    """One tokenised sample. weights: one per completion token. images: digests of the prompt's
    images, which tell apart prompts of equal tokens."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    weights: tuple[float, ...]
    images: tuple[str, ...] = ()

    def same_prompt(self, other: Tokens) -> bool:
        return self.prompt == other.prompt and self.images == other.images


@dataclass(frozen=True)
class Abilities:
    """What `examine` found out about a model.

    packed: responses can share their prompt in one row. tail: its head can be run on chosen hidden
    states; without it the model computes the logits of every position.
    """

    packed: bool
    tail: bool


def group_by_prompt(samples: Sequence[Tokens]) -> list[list[Tokens]]:
    """Neighbours with equal prompts, in order."""
    groups: list[list[Tokens]] = []
    for sample in samples:
        if groups and groups[-1][0].same_prompt(sample):
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return groups


def row_tokens(samples: Sequence[Tokens], *, packed: bool) -> int:
    """Tokens that the model computes for these samples; a row's last token predicts nothing."""
    responses = sum(len(sample.completion) - 1 for sample in samples)
    if packed:
        return responses + sum(len(group[0].prompt) for group in group_by_prompt(samples))
    longest = max(len(sample.prompt) + len(sample.completion) - 1 for sample in samples)
    return longest * len(samples)


def pack(samples: Sequence[Tokens], *, packed: bool, pad_id: int = 0) -> Inputs:
    """One batch: `call` holds the model's arguments, the rest says where the answers come out.

    predictors: (p,) positions among the flattened rows whose hidden states predict `targets` (p,);
    places: (p,) where their scores go in (n t), flattened. mask, weights: (n t).
    """
    batch = _one_row(samples) if packed else _padded_rows(samples, pad_id)
    longest = max(len(sample.completion) for sample in samples)
    lengths = torch.tensor([len(sample.completion) for sample in samples])
    mask = torch.arange(longest) < lengths[:, None]
    weights = torch.ones(mask.shape)
    weights[mask] = torch.tensor([weight for sample in samples for weight in sample.weights])
    return {
        **batch,
        "targets": torch.tensor([token for sample in samples for token in sample.completion]),
        "places": mask.flatten().nonzero()[:, 0],
        "mask": mask,
        "weights": weights,
    }


def _one_row(samples: Sequence[Tokens]) -> Inputs:
    ids: list[int] = []
    predictors: list[Tensor] = []
    groups: list[list[int]] = []
    for group in group_by_prompt(samples):
        ids += group[0].prompt
        last_of_prompt = len(ids) - 1
        groups.append([len(group[0].prompt)])
        for sample in group:
            own = len(sample.completion) - 1
            predictors.append(torch.tensor([last_of_prompt, *range(len(ids), len(ids) + own)]))
            ids += sample.completion[:-1]
            groups[-1].append(own)
    call = {"input_ids": torch.tensor([ids]), "position_ids": segment_positions(groups)[None]}
    return {"call": call, "groups": groups, "predictors": torch.cat(predictors)}


def _padded_rows(samples: Sequence[Tokens], pad_id: int) -> Inputs:
    rows = [[*sample.prompt, *sample.completion[:-1]] for sample in samples]
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_id)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    seen = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
    predictors = [
        torch.arange(len(sample.prompt) - 1, len(row)) + number * longest
        for number, (sample, row) in enumerate(zip(samples, rows, strict=True))
    ]
    call = {"input_ids": ids, "attention_mask": seen.long()}
    return {"call": call, "groups": None, "predictors": torch.cat(predictors)}


def score(
    model: nn.Module, inputs: Inputs, abilities: Abilities, stats: Collection[str] = ()
) -> Scored:
    """Log-probabilities of what `pack` laid out, by one call of the model."""
    lm = causal_lm(model)
    states, tail = predicting_states(model, inputs, abilities)
    flat, figures = token_log_probs(
        states,
        inputs["targets"],
        tail,
        vocabulary=vocabulary(lm),
        head_trained=not abilities.tail or head_trained(lm),
        stats=set(stats) - {PREDICTIONS, DIVERGENCE},
        reference=inputs[PREDICTIONS] if DIVERGENCE in stats else None,
    )
    scored = tabulated(flat, figures, inputs)
    if PREDICTIONS not in stats:
        return scored
    return replace(scored, predictions=log_distributions(states, tail, vocabulary=vocabulary(lm)))


def tabulated(flat: Tensor, figures: Mapping[str, Tensor], inputs: Inputs) -> Scored:
    """Log-probabilities and figures (p,) of the targets in `inputs`, put in their places."""
    mask = inputs["mask"]

    def table(column: Tensor) -> Tensor:
        flat_table = column.new_zeros(mask.numel()).index_put((inputs["places"],), column)
        return flat_table.view(mask.shape)

    tokens = TokenScores(
        table(flat), mask, inputs["weights"], {name: table(c) for name, c in figures.items()}
    )
    divergence = tokens.stats[DIVERGENCE].sum(-1) if DIVERGENCE in figures else None
    return Scored(tokens.log_probs.sum(-1), mask.sum(-1).float(), tokens, divergence=divergence)


def joined(parts: Sequence[Scored], rows: Tensor) -> Scored:
    """What several calls found out. rows: (n,) where their answers, one after the other, go."""
    tables = [part.tokens for part in parts if part.tokens is not None]
    longest, back = max(table.mask.shape[1] for table in tables), rows.argsort()

    def together(columns: Sequence[Tensor]) -> Tensor:
        return torch.cat([F.pad(c, (0, longest - c.shape[1])) for c in columns])[back]

    tokens = TokenScores(
        together([table.log_probs for table in tables]),
        together([table.mask for table in tables]),
        together([table.weights for table in tables]),
        {name: together([table.stats[name] for table in tables]) for name in tables[0].stats},
    )
    return Scored(
        torch.cat([part.log_probs for part in parts])[back],
        torch.cat([part.lengths for part in parts])[back],
        tokens,
    )


def predicting_states(
    model: nn.Module, inputs: Inputs, abilities: Abilities
) -> tuple[Tensor, Tail]:
    """(p h) hidden states that predict the targets, and the model's way from them to logits (p v).

    Where that way is not known the states are the logits themselves.
    """
    call = inputs["call"]
    if inputs["groups"] is not None:
        blocks = Blocks(**inputs["blocks"]) if "blocks" in inputs else None
        call = segment_inputs(**call, groups=inputs["groups"], blocks=blocks)
    if abilities.tail:
        states, tail = hidden_states(model, **call), own_tail(causal_lm(model))
    else:
        states, tail = model(**call, use_cache=False).logits, _as_is
    return states.flatten(0, 1).index_select(0, inputs["predictors"]), tail


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The transformers model with a head that lies in `model` under LoRA and parallel wrappers.

    Raises TypeError when there is none.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.get_output_embeddings() is not None:
            return module
    raise TypeError(f"{type(model).__name__} holds no transformers model with an output head")


def vocabulary(lm: PreTrainedModel) -> int:
    """Rows of the head: often a few more than the tokenizer has tokens."""
    return int(lm.get_output_embeddings().weight.shape[0])


def head_trained(lm: PreTrainedModel) -> bool:
    """Whether anything behind the hidden states gets gradients, a tied embedding included."""
    backbone = backbone_name(lm)
    behind = [child for name, child in lm.named_children() if name != backbone]
    return any(p.requires_grad for child in behind for p in child.parameters())


def hidden_states(model: nn.Module, **call: Any) -> Tensor:
    """(rows s h): what the head of the model is given in one call of it.

    The call goes through all wrappers (LoRA, data parallel); only its head sees a single position.
    """
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: Any, output: Any) -> Any:
        caught.append(output.last_hidden_state)
        output.last_hidden_state = output.last_hidden_state[:, -1:]
        return output

    lm = causal_lm(model)
    handle = lm.get_submodule(backbone_name(lm)).register_forward_hook(catch)
    try:
        model(**call, use_cache=False)
    finally:
        handle.remove()
    return caught[0]


def own_tail(lm: PreTrainedModel) -> Tail:
    """The model's own way from hidden states (p h) to logits (p v), whatever its family does there.

    It is the model's own `forward`, run on a shallow twin whose backbone hands over given states.
    """
    given = _Given()
    twin = copy.copy(lm)
    twin._modules = {**lm._modules, backbone_name(lm): given}
    nothing = torch.zeros(1, 1, dtype=torch.long, device=lm.device)

    def tail(hidden: Tensor) -> Tensor:
        given.states = hidden[None]
        # Not twin(...) nor twin.forward: hooks and patches of `forward` belong to the real model.
        return type(lm).forward(twin, input_ids=nothing).logits[0]

    return tail


class _Given(nn.Module):
    """Stands in for a backbone."""

    states: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> _GivenOutput:
        return _GivenOutput(last_hidden_state=self.states)


@dataclass
class _GivenOutput(ModelOutput):
    """What heads read from their backbone, over all families."""

    # Older names of `cache`; no fields, because newer versions warn when they are set.
    past_key_values: ClassVar[Any] = None
    cache_params: ClassVar[Any] = None

    last_hidden_state: Tensor | None = None
    cache: Any = None
    hidden_states: Any = None
    attentions: Any = None
    image_hidden_states: Any = None
    image_outputs: Any = None
    video_outputs: Any = None
    rope_deltas: Any = None
    cross_attentions: Any = None
    router_logits: Any = None


def _as_is(logits: Tensor) -> Tensor:
    return logits


def backbone_name(lm: PreTrainedModel) -> str:
    """The child that holds the input embeddings and is not the head."""
    embeddings = lm.get_input_embeddings()
    for name, child in lm.named_children():
        if child is not lm.get_output_embeddings() and any(
            module is embeddings for module in child.modules()
        ):
            return name
    raise TypeError(f"{type(lm).__name__} has no part that holds its input embeddings")


_CHECKED = ((6, 3, 2), (4, 0, 3), (5, 1))
"""The groups that `examine` tries: several rows, lengths that differ, an empty response."""


def examine(lm: PreTrainedModel) -> Abilities:
    """Find out by trying a few random tokens what the model can do, and announce what it cannot.

    Replaces the model's attention function where packing works (see `packing.use_segments`).
    """
    with evaluating(lm), torch.no_grad():
        tail = _works(lambda: _check_tail(lm), lm, "run its head on chosen positions only")
    return Abilities(tail and shares_prompts(lm), tail)


def shares_prompts(lm: PreTrainedModel) -> bool:
    """Whether responses may share their prompt in one row, found out and announced like the rest.

    Replaces the model's attention function where it works.
    """
    before = attention_of(lm)
    with evaluating(lm), torch.no_grad():
        packed = _works(
            lambda: _check_segments(lm), lm, "compute a prompt once for all its responses"
        )
    if not packed and attention_of(lm) != before:
        set_attention(lm, before)
    return packed


def _works(check: Callable[[], None], lm: PreTrainedModel, ability: str) -> bool:
    # A foreign forward may refuse in any of these ways; whichever it is, the reason is passed on.
    refusals = (PackingError, TypeError, ValueError, AttributeError, RuntimeError, LookupError)
    try:
        check()
    except refusals as refusal:
        reason = str(refusal).splitlines()[0] if str(refusal) else type(refusal).__name__
        warnings.warn(
            f"{type(lm).__name__} cannot {ability} ({reason}); the slower plain way is used",
            stacklevel=4,
        )
        return False
    return True


def _check_tail(lm: PreTrainedModel) -> None:
    call = _padded_rows(_random_samples(lm), 0)["call"]
    call = {name: tensor.to(lm.device) for name, tensor in call.items()}
    real = lm(**call, use_cache=False).logits
    ours = own_tail(lm)(hidden_states(lm, **call).flatten(0, 1))
    _compare(ours, real.flatten(0, 1), "its head gives other logits when run alone")


def _check_segments(lm: PreTrainedModel) -> None:
    samples = _random_samples(lm)
    plain, row = _padded_rows(samples, 0), _one_row(samples)
    for part in (plain, row):
        part["call"] = {name: tensor.to(lm.device) for name, tensor in part["call"].items()}
    before = hidden_states(lm, **plain["call"])
    use_segments(lm)
    after = hidden_states(lm, **plain["call"])
    call = segment_inputs(**row["call"], groups=row["groups"])
    windows: list[int | None] = []
    packed = hidden_states(lm, **{**call, "segments": Segments(row["groups"], windows)})
    expected = expected_windows(lm.config.get_text_config())
    if windows != expected:
        raise PackingError(f"its attention layers got windows {windows}, expected {expected}")
    real = plain["call"]["attention_mask"].bool()
    _compare(after[real], before[real], "its attention gives other results through our function")
    picked = [part["predictors"].to(lm.device) for part in (row, plain)]
    _compare(
        packed.flatten(0, 1)[picked[0]],
        before.flatten(0, 1)[picked[1]],
        "packed rows differ from separate ones",
    )


def _compare(ours: Tensor, real: Tensor, complaint: str) -> None:
    difference = (ours.float() - real.float()).abs().mean() / real.float().abs().mean()
    if not difference <= (1e-4 if real.dtype == torch.float32 else 0.05):
        raise PackingError(f"{complaint} (relative difference {difference:.1e})")


def _random_samples(lm: PreTrainedModel) -> list[Tokens]:
    draws = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary(lm), (count,), generator=draws).tolist())

    samples = []
    for prompt_length, *lengths in _CHECKED:
        prompt = tokens(prompt_length)
        samples += [Tokens(prompt, tokens(n + 1), (1.0,) * (n + 1)) for n in lengths]
    return samples


def moved(value: Any, device: torch.device) -> Any:
    """Inputs with every tensor on the device."""
    match value:
        case Tensor():
            return value.to(device, non_blocking=True)
        case dict():
            return {name: moved(item, device) for name, item in value.items()}
        case list():
            return [moved(item, device) for item in value]
    return value


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is as it was."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
