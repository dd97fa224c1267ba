"""Reasoning traces with planted errors, and tiny transformers that learned to write them.

A prompt is a row of digits, its trace their running sum modulo 3; a step is a filler word, the
digit and the sum: "2 1 2 =" -> "so 2 2 then 1 0 thus 2 2". A wrong trace has one wrong sum and goes
on rightly from it, so that exactly one token is to blame. Fillers are drawn at random, some rarely:
a token that is merely unlikely is no error. What the base model learned from errs in every fifth
step, so that to it a wrong sum is no rarer than a rare filler.

These settings are not the first that were tried. With a base model that erred rarely, its own
likelihood found 84 % of the errors and DPO's rewards 31 %; with a larger modulus it had not learned
the sums, and neither claim held.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mmalign.adapters.protocol import Scored
from mmalign.adapters.text import TextAdapter, load_text
from mmalign.files import whole_folder
from mmalign.objectives import objective
from mmalign.records import PLAIN, Message, Preference, Sample, Text, pair, thumb
from mmalign.training.loop import train
from mmalign.training.options import TrainingOptions
from mmalign.training.seeds import derive

MODULUS, LENGTH = 3, 8
FILLERS = {"so": 50, "then": 30, "thus": 12, "hence": 6, "now": 1, "well": 1}
"""Words with their shares in percent."""

SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
CARELESS = 0.2  # share of wrong steps in what the base model learned from


@dataclass(frozen=True)
class Trace:
    """digits: of the prompt. words: of the response. error: index of the wrong word, if any."""

    digits: tuple[int, ...]
    words: tuple[str, ...]
    error: int | None

    @property
    def sample(self) -> Sample:
        prompt = " ".join(map(str, self.digits)) + " ="
        return Sample((Message(PLAIN, (Text(prompt),)),), (Text(" ".join(self.words)),))

    def sums_are_right(self, text: str) -> bool:
        """Whether a trace somebody wrote for these digits has the right sums, fillers aside."""
        total, wanted = 0, []
        for digit in self.digits:
            total = (total + digit) % MODULUS
            wanted.append(str(total))
        return text.split()[2::3] == wanted


def trace(
    draw: random.Random, *, wrong: Collection[int] = (), digits: tuple[int, ...] | None = None
) -> Trace:
    """A trace for these or for random digits, with errors at the steps in `wrong`."""
    given = digits or tuple(draw.randrange(MODULUS) for _ in range(LENGTH))
    total, words = 0, []
    for step, digit in enumerate(given):
        total = (total + digit) % MODULUS
        if step in wrong:
            total = (total + draw.randrange(1, MODULUS)) % MODULUS
        filler = draw.choices(list(FILLERS), list(FILLERS.values()))[0]
        words += [filler, str(digit), str(total)]
    return Trace(given, tuple(words), 3 * min(wrong) + 2 if wrong else None)


def right_traces(count: int, seed: str) -> list[Trace]:
    draw = random.Random(seed)
    return [trace(draw) for _ in range(count)]


def wrong_traces(count: int, seed: str) -> list[Trace]:
    """Each with one error."""
    draw = random.Random(seed)
    return [trace(draw, wrong=(draw.randrange(LENGTH),)) for _ in range(count)]


def careless_traces(count: int, seed: str) -> list[Trace]:
    """Each step is wrong now and then."""
    draw = random.Random(seed)
    return [
        trace(draw, wrong=[step for step in range(LENGTH) if draw.random() < CARELESS])
        for _ in range(count)
    ]


def pairs(count: int, seed: str) -> tuple[list[Preference], list[Trace]]:
    """A right and a wrong trace for the same digits; and the wrong ones."""
    rejected = wrong_traces(count, seed)
    draw = random.Random(f"{seed} chosen")
    chosen = [trace(draw, digits=wrong.digits) for wrong in rejected]
    both = zip(chosen, rejected, strict=True)
    return [pair(right.sample, wrong.sample) for right, wrong in both], rejected


def base_model(folder: Path, *, seed: int, quick: bool) -> Path:
    """A tiny Llama that learned careless traces; trained once into `folder`."""
    if not folder.exists():
        with TemporaryDirectory() as scratch, whole_folder(folder) as partial:
            start = Path(scratch) / "start"
            torch.manual_seed(derive(seed, "traces"))
            _random_model().save_pretrained(start)
            _tokenizer().save_pretrained(start)
            steps, count = (20, 200) if quick else (500, 20_000)
            model = load_text(start)
            fine_tune(model, careless_traces(count, f"base {seed}"), Path(scratch) / "work",
                      steps=steps, seed=seed, learning_rate=3e-3)  # fmt: skip
            model.save(partial)
    return folder


def fine_tune(
    model: TextAdapter,
    shown: list[Trace],
    out: Path,
    *,
    steps: int,
    seed: int,
    learning_rate: float = 1e-3,
) -> None:
    """Train on the traces as they stand."""
    data = [thumb(one.sample, up=True) for one in shown]
    options = TrainingOptions(
        steps=steps, batch_size=64, learning_rate=learning_rate, micro_batch=8192, warmup=0.05,
        seed=seed,
    )  # fmt: skip
    train(model, data, objective("nll()"), options, out)


def scores(model: TextAdapter, shown: list[Trace]) -> Scored:
    """Log-probabilities of the traces' tokens; a word is a token, and the end is the last."""
    with torch.no_grad():
        samples = [one.sample for one in shown]
        inputs = model.encode(model.collate(samples, [0] * len(samples)))
        return model.log_probs(model.policy, inputs)


def _random_model() -> LlamaForCausalLM:
    ids = _words()
    config = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        eos_token_id=ids["<end>"],
        pad_token_id=ids["<pad>"],
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def _tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel(_words(), unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, **SPECIAL)


def _words() -> dict[str, int]:
    words = [*SPECIAL.values(), "=", *map(str, range(MODULUS)), *FILLERS]
    return {word: number for number, word in enumerate(words)}
