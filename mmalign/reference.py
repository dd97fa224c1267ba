"""What the reference thinks of samples: adapter off, a frozen copy, or figures cached on disk.

The reference is the model as it was when training began, LoRA or not; only `SyncedCopy` moves.
"""

from __future__ import annotations

import copy
import hashlib
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mmalign.adapters.protocol import Adapter, Inputs, Scored, TokenScores


class Reference(Protocol):
    """Scores the rows of one batch, without gradient."""

    def log_probs(
        self, inputs: Inputs, keys: Sequence[str], seeds: Sequence[int], stats: Collection[str] = ()
    ) -> Scored:
        """inputs: encoded rows. keys, seeds: id and seed of each row's sample."""
        ...


@dataclass(frozen=True)
class AdapterOff:
    """The policy's own weights without the LoRA that is being trained (or with the one that
    training started from): costs no memory."""

    adapter: Adapter

    def log_probs(
        self, inputs: Inputs, keys: Sequence[str], seeds: Sequence[int], stats: Collection[str] = ()
    ) -> Scored:
        with torch.no_grad(), self.adapter.reference_mode():
            return self.adapter.log_probs(self.adapter.policy, inputs, stats)


@dataclass(frozen=True)
class FrozenCopy:
    """A second copy of all weights, as they are now: what training all weights needs."""

    adapter: Adapter
    model: nn.Module

    @classmethod
    def of(cls, adapter: Adapter) -> FrozenCopy:
        return cls(adapter, copy.deepcopy(adapter.policy).requires_grad_(False).eval())

    def log_probs(
        self, inputs: Inputs, keys: Sequence[str], seeds: Sequence[int], stats: Collection[str] = ()
    ) -> Scored:
        with torch.no_grad():
            return self.adapter.log_probs(self.model, inputs, stats)


@dataclass(frozen=True)
class SyncedCopy:
    """A copy that moves towards the policy when told to: TR-DPO, arXiv:2404.09656.

    Weights that are not trained are shared with the policy, so that a LoRA's copy is as small as
    the LoRA.
    """

    adapter: Adapter
    model: nn.Module

    @classmethod
    def of(cls, adapter: Adapter) -> SyncedCopy:
        """Of the policy as it is now, which is where its first reference stays."""
        frozen = {id(p): p for p in adapter.policy.parameters() if not p.requires_grad}
        return cls(adapter, copy.deepcopy(adapter.policy, frozen).requires_grad_(False).eval())

    def log_probs(
        self, inputs: Inputs, keys: Sequence[str], seeds: Sequence[int], stats: Collection[str] = ()
    ) -> Scored:
        with torch.no_grad():
            return self.adapter.log_probs(self.model, inputs, stats)

    def sync(self, share: float) -> None:
        """Weights become share x the policy's + (1 - share) x their own."""
        with torch.no_grad():
            for name, weight in self._trained().items():
                weight.lerp_(self._policy[name].to(weight), share)

    def state(self) -> dict[str, Tensor]:
        """The weights that can move, for a checkpoint."""
        return self._trained()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError for the state of another model."""
        weights = self._trained()
        if state.keys() != weights.keys():
            raise ValueError("the checkpoint holds a reference of other weights than this run's")
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(state[name])

    @property
    def _policy(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.adapter.policy.named_parameters() if p.requires_grad}

    def _trained(self) -> dict[str, Tensor]:
        mine = dict(self.model.named_parameters())
        return {name: mine[name] for name in self._policy}


@dataclass(frozen=True)
class AsItIs:
    """The policy itself, now: right only before training, to fill a cache."""

    adapter: Adapter

    def log_probs(
        self, inputs: Inputs, keys: Sequence[str], seeds: Sequence[int], stats: Collection[str] = ()
    ) -> Scored:
        with torch.no_grad():
            return self.adapter.log_probs(self.adapter.policy, inputs, stats)


class Cached:
    """Another reference's answers, kept in a file and computed only where they are missing.

    A key is a hash of the reference's weights, the adapter's fingerprint, the sample's content and,
    where log-probabilities depend on noise, the seed: an answer can never be served for anything
    else, and editing one record of a dataset recomputes that record only. Several processes may
    write to the same file. What is not in the cache is asked of `inner`; without one, it is an
    error.
    """

    def __init__(self, path: Path, scope: str, inner: Reference | None, *, seeded: bool) -> None:
        self.inner, self.scope, self.seeded = inner, scope, seeded
        self.computed = 0
        self._waiting: dict[bytes, bytes] | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._db = _open(path)

    def log_probs(
        self, inputs: Inputs, keys: Sequence[str], seeds: Sequence[int], stats: Collection[str] = ()
    ) -> Scored:
        if stats:
            raise ValueError(
                f"the cache holds log-probabilities only, not {', '.join(stats)}: this objective "
                "compares whole predictions, which takes another reference than a cache"
            )
        places = [self._place(key, seed) for key, seed in zip(keys, seeds, strict=True)]
        found = self._read(places)
        if missing := [i for i, place in enumerate(places) if place not in found]:
            if self.inner is None:
                raise KeyError(
                    f"{len(missing)} samples have no cached reference in {self._path}: "
                    "precompute it over the whole dataset first, or keep a frozen copy"
                )
            fresh = self.inner.log_probs(inputs, keys, seeds)
            self.computed += len({places[i] for i in missing})
            self._write({places[i]: _row_bytes(fresh, i) for i in missing})
            found = self._read(places)
        device = next(v.device for v in inputs.values() if isinstance(v, Tensor))
        return _stack([_from_bytes(found[place]) for place in places], device)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Store everything that is computed inside at the end, at once or not at all."""
        self._waiting = {}
        try:
            yield
            self._store(self._waiting)
        finally:
            self._waiting = None

    def missing(self, keys: Sequence[str], seeds: Sequence[int]) -> bool:
        """Whether any of these samples still has to be computed."""
        places = {self._place(key, seed) for key, seed in zip(keys, seeds, strict=True)}
        return len(self._read(list(places))) < len(places)

    def _place(self, key: str, seed: int) -> bytes:
        text = "\n".join([self.scope, key, str(seed) if self.seeded else ""])
        return hashlib.sha256(text.encode()).digest()

    def _read(self, places: Sequence[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        unique = list(dict.fromkeys(places))
        for start in range(0, len(unique), 500):  # SQLite allows 999 variables in a statement
            some = unique[start : start + 500]
            marks = ",".join("?" * len(some))
            found |= dict(
                self._db.execute(f"SELECT place, row FROM rows WHERE place IN ({marks})", some)
            )
        waiting = self._waiting or {}
        return found | {place: waiting[place] for place in unique if place in waiting}

    def _write(self, rows: dict[bytes, bytes]) -> None:
        if self._waiting is None:
            self._store(rows)
        else:
            self._waiting |= rows

    def _store(self, rows: dict[bytes, bytes]) -> None:
        with self._db:  # one transaction: all of a batch or nothing
            self._db.executemany("INSERT OR IGNORE INTO rows VALUES (?, ?)", rows.items())

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a cache is opened by each process for itself")


def weights_digest(model: nn.Module, *, trained: bool = True) -> str:
    """Hash of every parameter and buffer, by name, type, shape and bytes.

    trained: False leaves out the weights that are being trained, such as a LoRA's.
    """
    left_out = {n for n, p in model.named_parameters() if p.requires_grad and not trained}
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name in left_out:
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _open(path: Path) -> sqlite3.Connection:
    # Training may run in another thread than the one that opened the cache; never in two at once.
    db = sqlite3.connect(path, timeout=60, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute(
        "CREATE TABLE IF NOT EXISTS rows (place BLOB PRIMARY KEY, row BLOB NOT NULL) WITHOUT ROWID"
    )
    return db


def _row_bytes(scored: Scored, i: int) -> bytes:
    """Sum, length and, where there are any, the log-probabilities of the elements."""
    head = torch.stack([scored.log_probs[i].float().cpu(), scored.lengths[i].float().cpu()])
    if scored.tokens is None:
        return head.numpy().tobytes()
    elements = scored.tokens.log_probs[i][scored.tokens.mask[i]].float().cpu()
    return torch.cat([head, elements]).numpy().tobytes()


def _from_bytes(row: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(row, dtype=np.float32).copy())


def _stack(rows: list[Tensor], device: torch.device) -> Scored:
    log_probs = torch.stack([row[0] for row in rows]).to(device)
    lengths = torch.stack([row[1] for row in rows]).to(device)
    elements = [row[2:] for row in rows]
    if all(len(e) == 0 for e in elements):
        return Scored(log_probs, lengths)
    padded = nn.utils.rnn.pad_sequence(elements, batch_first=True).to(device)
    steps = torch.arange(padded.shape[1], device=device)
    mask = steps < torch.tensor([len(e) for e in elements], device=device)[:, None]
    tokens = TokenScores(padded, mask, torch.ones_like(padded))
    return Scored(log_probs, lengths, tokens)
