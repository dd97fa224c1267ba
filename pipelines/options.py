"""What the align commands have in common, as groups of options; a command takes what suits it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it is held in memory.

    Args:
        model: Hub id or folder of the model; safetensors only.
        adapter: Folder of a LoRA to train further; the reference is the model with it.
        precision: Arithmetic and frozen weights; what is trained is float32.
        gradient_checkpointing: Compute activations twice to hold fewer of them.
    """

    model: str
    adapter: str | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    gradient_checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class LanguageOptions:
    """How a model of tokens is asked.

    Args:
        max_length: Tokens that prompt and response may have together, images included.
        truncate: Cut responses that are too long instead of refusing them; never an image.
        chat_template: Jinja template, or a file with one, in place of the model's own.
        trust_remote_code: Run code that comes with the model.
    """

    max_length: int | None = None
    truncate: bool = False
    chat_template: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """The LoRA that is trained.

    Args:
        lora_rank: Rank of a fresh LoRA; 0 trains all weights.
        lora_alpha: The LoRA's update is scaled by alpha / rank; twice the rank by default.
        lora_dropout: Dropout on the input of the LoRA.
        lora_targets: Modules that get a LoRA, separated by commas; by default all linear layers of
            a language model, and the attention layers of a denoiser.
    """

    lora_rank: int = 16
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    lora_targets: str | None = None

    def fresh(self, adapter: str | None) -> dict[str, Any] | None:
        """Options of the `Lora` to make; None where all weights or `adapter` are trained."""
        if not self.lora_rank or adapter is not None:
            return None
        chosen = {"r": self.lora_rank, "alpha": self.lora_alpha, "dropout": self.lora_dropout}
        if self.lora_targets is None:
            return chosen
        names = tuple(self.lora_targets.split(","))
        return chosen | {"targets": "all-linear" if names == ("all-linear",) else names}


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What is trained on, and what is measured on.

    Args:
        data: Folder, file or hub id of a dataset of preferences.
        split: Split of a hub dataset.
        columns: Columns that go by other names, as in chosen=better rejected=worse.
        images: Folder where relative paths of images start; by default where the data are.
        eval_data: Preferences for evaluation; otherwise some prompts of the data are held out.
        held_out: Share of the prompts that are held out; 0 holds out none.
        streaming: Read the data in order while training, without an index; needs --steps, and
            takes nothing from the data for evaluation.
        ties: Pairs that were liked alike: drop leaves them out; half counts them as half a
            preference each way, for objectives of pairs.
    """

    data: str
    split: str | None = None
    columns: list[str] | None = None
    images: Path | None = None
    eval_data: str | None = None
    held_out: float = 0.05
    streaming: bool = False
    ties: Literal["drop", "half"] = "drop"


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """What is looked at while a language model trains.

    Args:
        watch_every: Steps between looks at the model's own answers to held-out prompts: their
            entropy, divergence from the model before, and length; 0 never. Early signs of
            over-optimisation show there. Needs a LoRA, or a copy of all weights as reference.
        watch_prompts: How many prompts.
        watch_tokens: Tokens of an answer at most.
    """

    watch_every: int = 0
    watch_prompts: int = 16
    watch_tokens: int = 128


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where everything goes.

    Args:
        out: Folder for everything that comes of it.
        resume: Go on with a stopped run in that folder; otherwise start anew there.
        merged: Write the whole model too, with the LoRA folded in, as out/merged.
    """

    out: Path
    resume: bool = True
    merged: bool = False
