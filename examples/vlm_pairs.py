"""MIA-DPO and BDHS from drawn scenes to figures, offline and by commands alone.

    python examples/vlm_pairs.py --out runs/vlm-pairs

Scenes are drawn with their captions; `mmalign build` makes pairs of them with the playground's
models, `mmalign align-vlm` trains on the pairs, and beside it on their chosen side alone, and
`mmalign evaluate ranking` says for how many pairs of other scenes a model finds the better answer
likelier. Every line that starts with $ can be typed as it stands.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable
from pathlib import Path

from mmalign import cli
from mmalign.playground.scenes import caption, scenes
from mmalign.playground.vision_language import TINY_LLAVA, TINY_LLAVA_ALBUMS

DPO = 'dpo(beta=0.1) + 0.1*nll(reduction="mean")'
CONTROL = 'nll(reduction="mean")'


def draw(folder: Path, count: int, seed: str) -> None:
    """Pictures, each with its caption beside it."""
    folder.mkdir(parents=True)
    for number, scene in enumerate(scenes("together", count, seed=seed)):
        picture = folder / f"{number:04}.png"
        picture.write_bytes(scene.image().content)
        picture.with_suffix(".txt").write_text(caption(scene.present))


def run(line: str) -> None:
    print(f"$ mmalign {line}", flush=True)
    if cli.main(shlex.split(line)) != 0:
        raise SystemExit(f"mmalign {line.split()[0]} failed")


def mia_dpo(pictures: Path, out: Path, model: Path) -> None:
    """Pairs of answers about the picture that is meant, and about another."""
    run(f"build collage {pictures} --layouts sequence --sequence 2 3 --out {out}-asked")
    run(
        f"build attention-filter {out}-asked --model {model} --max-new-tokens 48 --keep all"
        f" --out {out}-measured"
    )
    run(
        f"build attention-filter {out}-measured --thresholds sequence=0.6 --perplexity-min 1"
        f" --out {out}"
    )


def bdhs(pictures: Path, out: Path, model: Path) -> None:
    """Pairs of captions and what the model writes when it sees one of the nine cells."""
    run(
        f"build bdhs {pictures} --model {model} --embedder words --expected-visible 1"
        f" --sentence-tokens 24 --answer-tokens 48 --out {out}"
    )


METHODS: dict[str, tuple[Callable[[Path, Path, Path], None], Path]] = {
    "mia": (mia_dpo, TINY_LLAVA_ALBUMS),
    "bdhs": (bdhs, TINY_LLAVA),
}


def ranked(pairs: Path, model: Path, trained: Path) -> str:
    """Shares of the pairs: whose better answer is the likelier one, and gained more; 95 %."""
    out = trained / "ranking"
    run(f"evaluate ranking --model {model} --adapter {trained}/model --data {pairs} --out {out}")
    metrics = json.loads((out / "metrics.json").read_text())
    before, after = metrics["before"], metrics["after"]
    figures = before["ranking accuracy"], after["ranking accuracy"], after["reward accuracy"]
    return ", ".join("{value:.2f} [{low:.2f}, {high:.2f}]".format(**each) for each in figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/vlm-pairs"))
    parser.add_argument("--pictures", type=int, default=192, help="as many again to evaluate on")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    draw(options.out / "train", options.pictures, "train")
    draw(options.out / "test", options.pictures, "test")
    found = []
    for name in options.methods:
        make, model = METHODS[name]
        folder = options.out / name
        for part in ("train", "test"):
            make(options.out / part, folder / part, model)
        for kind, objective in (("dpo", DPO), ("control", CONTROL)):
            trained = folder / kind
            run(
                f"align-vlm --model {model} --data {folder}/train --objective '{objective}'"
                f" --steps {options.steps} --lora-rank 8 --learning-rate 5e-4 --out {trained}"
            )
            found.append(f"{name}, {kind}: {ranked(folder / 'test', model, trained)}")
    print("on other scenes: ranking accuracy before and after, reward accuracy", *found, sep="\n")


if __name__ == "__main__":
    main()
