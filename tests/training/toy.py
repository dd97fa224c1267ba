"""A bigram language model as an adapter: small enough to train in milliseconds.

Run as a program it trains under the folder given, so that tests can kill it and start it again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.adapters.protocol import BadSample, Inputs, Scored, TokenScores
from mmalign.cli import part
from mmalign.objectives import objective
from mmalign.records import PLAIN, Message, Preference, Sample, Text, pair, text_of
from mmalign.reference import AdapterOff, Cached, FrozenCopy, weights_digest
from mmalign.training.loop import train
from mmalign.training.options import TrainingOptions

LETTERS = "abcdefgh"


class Bigram(nn.Module):
    """Next-letter logits from the last letter: frozen table plus a trained one that can be off."""

    def __init__(self, *, full: bool, dropout: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        table = torch.randn(len(LETTERS), len(LETTERS), generator=generator)
        self.base = nn.Parameter(table, requires_grad=full)
        self.delta = nn.Parameter(torch.zeros_like(table), requires_grad=not full)
        self.dropout = nn.Dropout(dropout)
        self.on = True

    def forward(self, last: Tensor) -> Tensor:
        logits = self.base[last]
        return logits + self.dropout(self.delta)[last] if self.on else logits


class Toy:
    """The adapter. A prompt gives the first letter; the response is scored letter by letter."""

    seeded = False
    strata = 1
    fingerprint = "toy"

    def __init__(self, *, full: bool = False, dropout: float = 0.0) -> None:
        self.policy = Bigram(full=full, dropout=dropout)
        self.calls = 0

    def size(self, samples: Sequence[Sample]) -> int:
        for sample in samples:
            if "?" in text_of(sample.response):
                raise BadSample("the response holds a '?', which this model cannot write")
        return sum(len(text_of(sample.response)) + 1 for sample in samples)

    def collate(self, samples: Sequence[Sample], seeds: Sequence[int]) -> Inputs:
        texts = [text_of(s.prompt[-1].parts)[-1] + text_of(s.response) for s in samples]
        most = max(len(text) for text in texts)
        ids = torch.tensor([[LETTERS.index(c) for c in text.ljust(most, "a")] for text in texts])
        lengths = torch.tensor([len(text) - 1 for text in texts])
        return {"ids": ids, "lengths": lengths}

    def encode(self, inputs: Inputs) -> Inputs:
        return inputs

    def log_probs(self, model: nn.Module, inputs: Inputs, stats: Collection[str] = ()) -> Scored:
        self.calls += 1
        ids, lengths = inputs["ids"], inputs["lengths"]
        scores = model(ids[:, :-1]).log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        mask = torch.arange(scores.shape[1]) < lengths[:, None]
        scores = scores * mask
        tokens = TokenScores(scores, mask, torch.ones_like(scores))
        return Scored(scores.sum(-1), lengths.float(), tokens)

    @contextmanager
    def reference_mode(self) -> Iterator[None]:
        self.policy.on = False
        try:
            yield
        finally:
            self.policy.on = True

    def sample(self, prompts: Any, seeds: Any, **options: Any) -> list[Sample]:
        raise NotImplementedError("the toy is only scored")

    def save(self, folder: Path) -> None:
        raise NotImplementedError("the toy is only scored")


def sample(prompt: str, response: str) -> Sample:
    return Sample((Message(PLAIN, (Text(prompt),)),), (Text(response),))


def preferences(count: int, seed: int = 0) -> list[Preference]:
    """Responses with more of the letter a are better."""
    generator = torch.Generator().manual_seed(seed)

    def word() -> str:
        length = int(torch.randint(2, 7, (1,), generator=generator))
        letters = torch.randint(len(LETTERS), (length,), generator=generator).tolist()
        return "".join(LETTERS[i] for i in letters)

    made = []
    while len(made) < count:
        better, worse = sorted((word(), word()), key=lambda text: -text.count("a"))
        if better.count("a") > worse.count("a"):
            made.append(pair(sample(word(), better), sample(word(), worse)))
    return [pair(p.chosen, Sample(p.chosen.prompt, p.rejected.response)) for p in made]


class Stream:
    """The same records without length or index."""

    def __init__(self, records: list[Preference]) -> None:
        self.records = records

    def __iter__(self) -> Iterator[Preference]:
        return iter(self.records)


def run(
    out: Path,
    *,
    spec: str = "dpo(beta=0.5)",
    stream: bool = False,
    full: bool = False,
    cached: bool = False,
    dropout: float = 0.1,
    steps: int = 30,
    **options: Any,
) -> Toy:
    """Train a toy under `out` and return it."""
    toy = Toy(full=full, dropout=dropout)
    records = preferences(40)
    reference: Any = FrozenCopy.of(toy) if full else AdapterOff(toy)
    if cached:
        scope = weights_digest(toy.policy)
        reference = Cached(out / "reference.sqlite", scope, reference, seeded=False)
    settings: dict[str, Any] = {
        "batch_size": 6, "micro_batch": 40, "learning_rate": 0.05, "save_every": 3, "steps": steps,
        "eval_every": 10, "shuffle_buffer": 16,
    } | options  # fmt: skip
    train(
        toy,
        Stream(records) if stream else records,
        objective(spec),
        TrainingOptions(**settings),
        out,
        reference=reference,
        held_out=preferences(8, seed=1),
    )
    return toy


def command(out: Path, settings: dict[str, Any]) -> list[str]:
    """A command line that does `run(out, **settings)` in a process of its own."""
    return [__file__, str(out), json.dumps(settings)]


def environment() -> dict[str, str]:
    """What such a process needs to find mmalign and this file's neighbours."""
    tests = Path(__file__).parents[1]
    return {**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}"}


def launch(out: Path, settings: dict[str, Any], *, processes: int) -> None:
    """`run` in several processes that talk to one another."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run(
        [*torchrun, f"--nproc-per-node={processes}", *command(out, settings)],
        env=environment() | {"ACCELERATE_USE_CPU": "true"},
        check=True,
    )


if __name__ == "__main__":
    folder, arguments = sys.argv[1:]
    run(Path(folder), **json.loads(arguments))
    part()
