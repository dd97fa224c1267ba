"""What can be chosen about training, apart from model, data and objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ReferenceKind = Literal["auto", "adapter-off", "copy", "cache"]
"""Where a reference's figures come from: the policy without its LoRA, a second set of weights, or
a file that is computed once; auto is the first of these that works."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Options of the training loop.

    Args:
        epochs: Passes over the data.
        steps: Optimiser steps; overrides epochs. Needed when the data are streamed.
        batch_size: Preferences per optimiser step, over all processes and micro-batches.
        micro_batch: Elements (tokens, latent pixels), padding included, that go through the model
            at once. Decides memory and speed, not the result, except for objectives that compare
            preferences with one another (aot, kto with a batch baseline).
        learning_rate: Peak learning rate of AdamW.
        optimizer: adamw, or adamw-8bit, which keeps the moments of tensors from 4,096 weights on in
            8 bits: a quarter of the memory, slightly other steps (pip install 'mmalign[8bit]').
        schedule: Shape of the learning rate after warm-up.
        warmup: Share of the steps in which the learning rate rises linearly.
        weight_decay: Decoupled weight decay, on matrices only.
        adam_betas: Decay rates of AdamW's moments.
        max_grad_norm: Gradients are scaled down to this norm; 0 switches clipping off.
        seed: Seed of everything random: order, dropout, noise.
        shuffle_buffer: Records among which streamed data are shuffled.
        eval_every: Steps between evaluations on held-out preferences; 0 evaluates at the end only.
        save_every: Steps between checkpoints; 0 saves at the end only.
        keep_checkpoints: Checkpoints kept, besides the best one.
        best_metric: Held-out metric that chooses the best checkpoint.
        noise_cycle: Passes over the data after which the timesteps and noises of denoisers repeat,
            so that a cached reference serves again; 0 draws new ones in every pass.
        workers: Processes that read and tokenise ahead; 0 does it in the main process.
        sync_reference_every: Steps after which the reference moves towards the policy (TR-DPO,
            arXiv:2404.09656; the paper's 512); 0 leaves it where training began.
        sync_reference_share: How far it moves: share of the policy's weights in the new ones; 1
            makes it the policy.
        average: Share that a running mean of the weights keeps in each step, for instance 0.999;
            evaluations and the trained model then have the mean. 0 keeps none.
        trackers: Where metrics are sent besides metrics.jsonl.
        max_refused: Share of unusable records above which training stops; a few never stop it.
    """

    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 32
    micro_batch: int = 8192
    learning_rate: float = 5e-6
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.1
    weight_decay: float = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    seed: int = 0
    shuffle_buffer: int = 1000
    eval_every: int = 0
    save_every: int = 0
    keep_checkpoints: int = 2
    best_metric: str = "loss"
    noise_cycle: int = 0
    workers: int = 0
    sync_reference_every: int = 0
    sync_reference_share: float = 0.6
    average: float = 0.0
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    max_refused: float = 0.1

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup is a share of the steps, 0 to 1, not {self.warmup}")
        if not 0 < self.sync_reference_share <= 1:
            raise ValueError(
                f"sync_reference_share is above 0 and at most 1, not {self.sync_reference_share}"
            )
        if not 0 <= self.average < 1:
            raise ValueError(f"average is a share, 0 to below 1, not {self.average}")
        if self.noise_cycle < 0:
            raise ValueError(f"noise_cycle is a number of passes, not {self.noise_cycle}")
        if self.steps is None and self.epochs <= 0:
            raise ValueError(f"epochs must be positive, not {self.epochs}")
        if self.steps is not None and self.steps <= 0:
            raise ValueError(f"steps must be positive, not {self.steps}")
