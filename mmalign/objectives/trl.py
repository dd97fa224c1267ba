"""Which spec is what in TRL 1.16: our words for its trainers' options, each compared by a test.

Values and gradients of every line agree within 1e-6 on random log-probabilities, with one
preference counting as much as another (`beta=0.3` stands for any beta).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Lines = Mapping[str, Mapping[str, Any]]
"""From a spec to the options of TRL's trainer that mean the same."""

DPO: Lines = {
    "dpo(beta=0.3)": {"loss_type": ["sigmoid"]},
    "hinge(beta=0.3)": {"loss_type": ["hinge"]},
    "ipo(beta=0.3)": {"loss_type": ["ipo"]},
    "exo(beta=0.3, label_smoothing=0.1)": {"loss_type": ["exo_pair"], "label_smoothing": 0.1},
    "nca(beta=0.3)": {"loss_type": ["nca_pair"]},
    "robust(dpo(beta=0.3), flip_rate=0.1)": {"loss_type": ["robust"], "label_smoothing": 0.1},
    "bco_pair(beta=0.3, baseline='zero')": {"loss_type": ["bco_pair"]},
    "sppo(beta=0.3)": {"loss_type": ["sppo_hard"]},
    "aot(beta=0.3)": {"loss_type": ["aot"]},
    "smooth(aot(beta=0.3), rate=0.1)": {"loss_type": ["aot"], "label_smoothing": 0.1},
    "aot_unpaired(beta=0.3)": {"loss_type": ["aot_unpaired"]},
    "apo_zero(beta=0.3)": {"loss_type": ["apo_zero"]},
    "apo_down(beta=0.3)": {"loss_type": ["apo_down"]},
    "discopop(beta=0.3, tau=0.5)": {"loss_type": ["discopop"], "discopop_tau": 0.5},
    "ln_dpo(beta=0.3)": {"loss_type": ["sigmoid_norm"]},
    "nll(reduction='tokens')": {"loss_type": ["sft"]},
    "f_dpo(beta=0.3, divergence='forward_kl')": {"f_divergence_type": "forward_kl"},
    "f_dpo(beta=0.3, divergence='js')": {"f_divergence_type": "js_divergence"},
    "f_dpo(beta=0.3, divergence='alpha', alpha=0.5)": {
        "f_divergence_type": "alpha_divergence",
        "f_alpha_divergence_coef": 0.5,
    },
    "ld_dpo(beta=0.3, alpha=0.5)": {"ld_alpha": 0.5},
    "wpo(dpo(beta=0.3), clamp=False)": {"use_weighting": True},
    "0.8*dpo(beta=0.3) + 0.2*bco_pair(beta=0.3) + nll(reduction='tokens')": {
        "loss_type": ["sigmoid", "bco_pair", "sft"],
        "loss_weights": [0.8, 0.2, 1.0],
    },
}

KTO: Lines = {
    "kto(beta=0.3)": {"loss_type": "kto"},
    "kto(beta=0.3, desirable=1.5, undesirable=0.7)": {
        "loss_type": "kto",
        "desirable_weight": 1.5,
        "undesirable_weight": 0.7,
    },
    "apo_zero_unpaired(beta=0.3)": {"loss_type": "apo_zero_unpaired"},
}

CPO: Lines = {
    "contrastive(beta=0.3) + 0.7*nll(reduction='tokens')": {"cpo_alpha": 0.7},
    "smooth(contrastive(beta=0.3), rate=0.1)": {"cpo_alpha": 0.0, "label_smoothing": 0.1},
    "reference_free(hinge(beta=0.3))": {"loss_type": "hinge", "cpo_alpha": 0.0},
    "reference_free(ipo(beta=0.3))": {"loss_type": "ipo", "cpo_alpha": 0.0},
    "simpo(beta=0.3, gamma=0.5)": {
        "loss_type": "simpo",
        "simpo_gamma": 0.5,
        "cpo_alpha": 0.0,
    },
    "simpo(beta=0.3, gamma=0.5, alpha=0.25)": {
        "loss_type": "simpo",
        "simpo_gamma": 0.5,
        "alpha": 0.25,
        "cpo_alpha": 0.0,
    },
    "simpo(beta=0.3, gamma=0.5) + nll(reduction='tokens')": {
        "loss_type": "simpo",
        "simpo_gamma": 0.5,
        "cpo_alpha": 1.0,
    },
}

ORPO: Lines = {"nll(reduction='tokens') + 0.3*odds_ratio()": {}}

_SIDES = "better='candidate1', worse='rejected'"
TPO: Lines = {
    f"contrast(contrastive(beta=0.3), {_SIDES}) + 0.7*nll(reduction='tokens')": {"tpo_alpha": 0.7},
    f"contrast(reference_free(hinge(beta=0.3)), {_SIDES}) + nll(reduction='tokens')": {
        "loss_type": "hinge"
    },
    f"contrast(reference_free(ipo(beta=0.3)), {_SIDES}) + nll(reduction='tokens')": {
        "loss_type": "ipo"
    },
    f"contrast(simpo(beta=0.3, gamma=0.5), {_SIDES}) + nll(reduction='tokens')": {
        "loss_type": "tpo-l",
        "tpo_l_gamma": 0.5,
    },
}

ONLINE: Lines = {
    "dpo(beta=0.3)": {"loss_type": "sigmoid"},
    "ipo(tau=0.3, average=False)": {"loss_type": "ipo"},
}

TRAINERS: Mapping[str, Lines] = {
    "DPOTrainer": DPO,
    "KTOTrainer": KTO,
    "experimental CPOTrainer": CPO,
    "experimental ORPOTrainer": ORPO,
    "experimental TPOTrainer": TPO,
    "experimental OnlineDPOTrainer": ONLINE,
}

DIFFERENCES = (
    "`ipo` needs `average=True` or `average=False`. TRL divides log-ratios by the response's "
    "length, the paper's formula sums them, and tau does not carry over from one to the other.",
    "`label_smoothing` belongs to the objective here: `cdpo`, `smooth(...)`, `robust(...)`. TRL's "
    "`sigmoid` takes the option and ignores it; its `robust`, `exo_pair`, `aot` and "
    "`aot_unpaired` use it.",
    "`bco_pair` moves its baseline with the mean of the rewards seen so far, as in the paper; "
    "TRL's is always 0, our `baseline='zero'`.",
    "`discopop` grows linearly far from the decision, as the formula does; TRL's exponential "
    "overflows there.",
    "`nll` counts responses alike by default, TRL's tokens alike (`reduction='tokens'`). ORPO in "
    "TRL also learns the prompt's tokens; here a prompt is never learned.",
    "`cpo`, `orpo` and `triple_po` take `nll()` per response. To repeat TRL's numbers use the "
    "sums above.",
    "`kto`'s baseline is estimated over a whole optimiser step and all processes, so that it does "
    "not depend on how the step is cut into micro-batches; TRL's over a micro-batch.",
    "`wpo` bounds the product of the two weights by 1, as the paper's authors do; TRL does not "
    "(`clamp=False`).",
    "`ipo` in TRL's `OnlineDPOTrainer` sums log-ratios, as `average=False` does here, although its "
    "`DPOTrainer` averages them.",
    "`--average` keeps an exponential mean of weights: TRL's `BEMACallback` with `update_freq=1`, "
    "`ema_power=1`, `lag=10/9`, `multiplier=1/9`, `min_ema_multiplier` = 1 - average and without "
    "its bias correction, as a test shows; the correction, arXiv:2508.00180, is not offered.",
    "`simpo` takes gamma, or `gamma_beta_ratio` = gamma / beta, its authors' spelling.",
)


def section() -> str:
    """The part of docs/objectives.md about TRL."""
    lines = [HEAD]
    for trainer, specs in TRAINERS.items():
        for spec, options in specs.items():
            words = ", ".join(f"{name}={value!r}" for name, value in options.items())
            lines.append(f"| {trainer} | `{words or 'defaults'}` | `{spec}` |")
    return "\n".join([*lines, "", "Where ours differs:", ""] + [f"- {d}" for d in DIFFERENCES])


HEAD = """## The same in TRL 1.16

Every line is a test: values and gradients agree within 1e-6 on random log-probabilities.

| trainer | options (beta=0.3) | here |
|---|---|---|"""
