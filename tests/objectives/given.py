"""Log-probabilities that the tests share: three pairs with published values, and random ones."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mmalign.objectives.scores import Batch, LogProbs, TokenLogProbs
from mmalign.objectives.table import TABLE


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def log_probs(
    policy: Tensor, reference: Tensor, length: Tensor | None = None, **aux: Tensor
) -> LogProbs:
    return LogProbs(
        policy, reference, torch.ones_like(policy) if length is None else length, aux=aux
    )


def of_ratio(*ratios: float) -> LogProbs:
    """Responses of one token with given log-ratios."""
    return log_probs(numbers(*ratios), torch.zeros(len(ratios), dtype=torch.float64))


def three_pairs(grad: bool = False) -> tuple[LogProbs, LogProbs]:
    """D_w = (2, -1.5, -2), D_l = (-5, 0.75, -3.5), h = (7, -2.25, 1.5)."""
    chosen = log_probs(
        numbers(-40, -33.5, -120).requires_grad_(grad),
        numbers(-42, -32, -118),
        numbers(20, 16, 80),
        grade=numbers(1, 1, 1),
    )
    rejected = log_probs(
        numbers(-55, -30.25, -90).requires_grad_(grad),
        numbers(-50, -31, -86.5),
        numbers(25, 12, 50),
        grade=numbers(0, 0, 0),
    )
    return chosen, rejected


def with_numbers(pair: tuple[LogProbs, LogProbs], **aux: Tensor) -> tuple[LogProbs, LogProbs]:
    """The pair with numbers of the preference, which both sides carry."""
    return pair[0].with_aux(**aux), pair[1].with_aux(**aux)


def diverging(ratio: float, kl: float) -> LogProbs:
    return replace(of_ratio(ratio), divergence=numbers(kl))


def sequence(policy: list[float], reference: list[float], **more: Tensor) -> LogProbs:
    p, r = numbers(*policy)[None], numbers(*reference)[None]
    weights = more.pop("weights", torch.ones_like(p))
    elements = TokenLogProbs(p, r, torch.ones_like(p, dtype=torch.bool), weights, more)
    return LogProbs(p.sum(1), r.sum(1), torch.tensor([p.shape[1]]), elements)


def same(found: Tensor, expected: tuple[float, ...] | float, within: float = 1e-9) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=within)


LOSSES = {
    "dpo(beta=0.1)": (0.4031860489, 0.8119620020, 0.6209570478),
    "dpo(beta=0.5)": (0.0297504183, 1.4061501362, 0.3868710061),
    "interpolated_dpo(beta=0.1, gamma=0)": (0.2014132780, 0.8687926040, 3.0485873516),
    "interpolated_dpo(beta=0.1)": (0.4031860489, 0.8119620020, 0.6209570478),
    "ipo(tau=0.1, average=False)": (4.0, 52.5625, 12.25),
    "ipo(tau=0.1, average=True)": (22.09, 26.5869140625, 24.552025),
    "ipo(beta=1.0)": (0.04, 0.4306640625, 0.207025),
    "contrastive(beta=0.1)": (0.2014132780, 0.8687926040, 3.0485873516),
    "contrastive(beta=2, average=True)": (0.5130152524, 0.3546192515, 0.4374879505),
    "smooth(contrastive(beta=0.1), rate=0.1)": (0.3514132780, 0.8362926040, 2.7485873516),
    "cpo(beta=0.1)": (2.2014132780, 2.9625426040, 4.5485873516),
    "contrastive(beta=0.1) + nll(reduction='sum')": (40.2014132780, 34.3687926040, 123.0485873516),
    "nll()": (2.0, 2.09375, 1.5),
    "odds_ratio()": (0.5856414338, 0.4836738905, 0.5244276038),
    "orpo(beta=0.1)": (2.0585641434, 2.1421173891, 1.5524427604),
    "simpo(beta=2.5, gamma=1.375)": (1.2234445810, 0.8585503842, 1.0537006783),
    "simpo(beta=2.5, gamma_beta_ratio=0.55)": (1.2234445810, 0.8585503842, 1.0537006783),
    "simpo(beta=10, gamma=3)": (1.3132616875, 0.2473269165, 0.6931471806),
    "simpo(beta=2, gamma=0)": (0.5130152524, 0.3546192515, 0.4374879505),
    "simpo(beta=2.5, gamma=0.1, alpha=0.25)": (0.3883756511, 0.1527193315, 0.3044386099),
    "simpo(beta=2.5, gamma=1.375, link='hinge')": (1.875, 1.3072916667, 1.625),
    "ln_dpo(beta=5)": (0.2014132780, 1.1582013347, 0.5869620020),
    "ln_dpo(beta=0.1)": (0.6782596763, 0.7009901978, 0.6908997118),
    "cdpo(beta=0.1, label_smoothing=0.1)": (0.4731860489, 0.7894620020, 0.6359570478),
    "smooth(dpo(beta=0.1), rate=0.2)": (0.5431860489, 0.7669620020, 0.6509570478),
    "robust(dpo(beta=0.1), flip_rate=0.1)": (0.3156860489, 0.8400870020, 0.6022070478),
    "robust(dpo(beta=0.1), flip_rate=0.2)": (0.1698527156, 0.8869620020, 0.5709570478),
    "rpo(beta=0.01, eta=0.005)": (0.6607595555, 0.7061354605, 0.6916753053),
    "rpo(beta=0.1, eta=0.005)": (0.4231860489, 0.8287120020, 0.6809570478),
    "dpo(beta=0.1) + nll()": (2.4031860489, 2.9057120020, 2.1209570478),
    "em(dpo(beta=0.1))": (0.4397897018, 0.7844782192, 0.6340500424),
    "em(ipo(tau=0.5, average=True))": (0.3021412468, 0.9462634959, 0.6224784058),
    "em(simpo(beta=2.5, gamma=1.375))": (0.4108677890, 0.2071209968, 0.3059185422),
    "em(cpo(beta=2, average=True))": (0.4719725538, 0.2834027527, 0.3800535701),
    "hinge(beta=0.1)": (0.3, 1.225, 0.85),
    "slic(delta=1)": (0.0, 4.25, 31.0),
    "exo(beta=0.1, label_smoothing=1e-3)": (1.6572915822, 3.1543932192, 2.5055165555),
    "discopop(beta=0.1, tau=0.05)": (0.4965852261, 0.8168002200, 0.8493375793),
    "aot(beta=0.1)": (0.6209570478, 0.8119620020, 0.4031860489),
    "aot_unpaired(beta=0.1)": (0.5543552445, 0.5981388694, 0.6325990353),
    "nca(beta=0.1)": (1.2342467962, 1.4471106421, 1.3638993818),
    "bco_pair(beta=0.1)": (1.0722158536, 1.5023071886, 1.3315210248),
    "sppo(beta=0.1)": (9.0, 75.3125, 51.25),
    "apo_zero(beta=0.1)": (0.8277066715, 1.0561710612, 0.9632164184),
    "apo_down(beta=0.1)": (0.8816462251, 1.0185840452, 0.9127361573),
    "f_dpo(beta=0.1, divergence='forward_kl')": (3.633924113e-07, 0.9135734844, 0.0735606271),
    "f_dpo(beta=0.1, divergence='js')": (0.4786324980, 0.7610327674, 0.6254639342),
    "f_dpo(beta=0.1, divergence='alpha')": (0.0899729118, 0.8463039883, 0.4349199698),
    "dpop(beta=0.1, penalty=5)": (0.4031860489, 1.2950469003, 1.2058650684),
    "r_dpo(beta=0.1, alpha=0.01)": (0.4200553357, 0.7899192187, 0.4932489460),
    "odpo(beta=0.1, alpha=0.3, scale='linear')": (0.5130152524, 0.9897117547, 0.7709570478),
}

"""Of the three pairs. Ten decimals are given, so 1e-9 is what can be held."""


def random_tokens(shape: tuple[int, ...], width: int, generator: torch.Generator) -> TokenLogProbs:
    def uniform(low: float, high: float) -> Tensor:
        draw = torch.rand(*shape, width, dtype=torch.float64, generator=generator)
        return low + (high - low) * draw

    lengths = torch.randint(2, width + 1, shape, generator=generator)
    mask = torch.arange(width) < lengths[..., None]
    return TokenLogProbs(
        policy=torch.where(mask, uniform(-3, -0.1), torch.nan),
        reference=torch.where(mask, uniform(-3, -0.1), torch.nan),
        mask=mask,
        weights=uniform(0.5, 3),
        stats={"collision": uniform(-2, -0.5)},
    )


NUMBERS = ("confidence", "safety", "weight", "factor", "difficulty", "crop_gain")
VIEWS = (
    "mismatched", "crop", "no_image", "swapped", "both", "both_swapped", "noise", "grey", "speckle",
    "with_crop",
)  # fmt: skip


def random_log_probs(shape: tuple[int, ...], seed: int = 0) -> LogProbs:
    """With tokens, and all numbers that any objective reads."""
    generator = torch.Generator().manual_seed(seed)
    tokens = random_tokens(shape, 5, generator)
    row = torch.rand(shape[0], *[1] * (len(shape) - 1), dtype=torch.float64, generator=generator)
    return LogProbs(
        policy=tokens.policy.nansum(-1),
        reference=tokens.reference.nansum(-1),
        length=tokens.mask.sum(-1),
        tokens=tokens,
        aux={name: (row + 0.1).expand(shape) for name in NUMBERS},
        divergence=torch.rand(shape, dtype=torch.float64, generator=generator),
    )


def random_batch(rows: int = 4, width: int = 2, seed: int = 0) -> Batch:
    """Pairs or lists, every candidate in every view."""
    views = {
        name: random_log_probs((rows, width), seed + i) for i, name in enumerate(VIEWS, start=1)
    }
    grades = torch.linspace(1, 0, width, dtype=torch.float64).expand(rows, width)
    return Batch(random_log_probs((rows, width), seed), grades, views)


EXAMPLES = {name: entry.spec(name) for name, entry in TABLE.items()}
