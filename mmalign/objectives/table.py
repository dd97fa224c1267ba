"""All objectives by name. To add one, write its function and add a line here.

`kind` says what a function takes and so how it is applied to a batch (see combine.py):
  pair    (chosen, rejected) -> (b,)        list    (candidates, grades) -> (b,)
  single  (sample) -> (n,)                  anchor  (chosen) -> (b,)
  batch   (batch) -> (b,)                   score   log-probabilities -> log-probabilities
  preset  options -> a spec of other objectives
Entries with `around` are wrappers: they take an objective of that kind and return one of `kind`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from mmalign.objectives import anchors, cells, pairwise, presets, ranking, robust, tokens, unpaired
from mmalign.objectives import logic as logics
from mmalign.objectives.options import Constant, SpecError
from mmalign.objectives.scores import Needs

Kind = Literal["pair", "single", "list", "anchor", "batch", "score", "preset"]


NOTHING = Needs()


@dataclass(frozen=True)
class Entry:
    """One objective.

    needs: what it reads, or a function of its options that says so. prepare: computes the baseline
    of a single objective from the batch; its options are the objective's. accept: turns other
    spellings of the options into ours. sorts: the rows of the result are not those of the batch.
    rows: a wrapper that weighs rows, so that it cannot go around an objective that sorts. flips: a
    wrapper that also takes the loss of the flipped pair, which a one_way objective must not meet.
    drops_reference: a change of score after which no reference is needed. example: a spec, where
    some option has no default. width: candidates of a preference that it takes.
    """

    function: Callable[..., Any]
    kind: Kind
    formula: str
    paper: str
    needs: Needs | Callable[..., Needs] = NOTHING
    around: Literal["", "pair", "anchor", "any"] = ""
    prepare: Callable[..., Tensor] | None = None
    accept: Callable[[Mapping[str, Constant]], dict[str, Constant]] | None = None
    sorts: bool = False
    rows: bool = False
    flips: bool = False
    one_way: bool = False
    drops_reference: bool = False
    example: str = ""
    width: int = 2

    def spec(self, name: str) -> str:
        """An example of the objective, with the default options where there are some."""
        return self.example or (f"{name}(dpo())" if self.around else f"{name}()")


def ipo_options(given: Mapping[str, Constant]) -> dict[str, Constant]:
    """ipo(beta=...) is the libraries' spelling, and there the log-ratio is a mean per token."""
    options = dict(given)
    if "beta" in options:
        if "tau" in options:
            raise SpecError("ipo: tau and beta are the same, give one of them")
        options["tau"] = options.pop("beta")
        options.setdefault("average", True)
    elif "average" not in options:
        raise SpecError(
            "ipo needs average=True (log-ratios per token, as in TRL) or average=False (summed, as "
            "in the paper's formula), because tau does not carry over: ipo(tau=0.1, average=True)"
        )
    return options


def simpo_options(given: Mapping[str, Constant]) -> dict[str, Constant]:
    """gamma_beta_ratio, the spelling of SimPO's authors, is gamma/beta."""
    options = dict(given)
    if "gamma_beta_ratio" not in options:
        return options
    if "gamma" in options:
        raise SpecError("simpo: give gamma or gamma_beta_ratio=gamma/beta, not both")
    ratio, beta = options.pop("gamma_beta_ratio"), options.get("beta", 2.0)
    numbers = [n for n in (ratio, beta) if isinstance(n, float | int) and not isinstance(n, bool)]
    if len(numbers) != 2:
        raise SpecError(f"simpo(gamma_beta_ratio=...) must be a number, not {ratio!r}")
    return {**options, "gamma": numbers[0] * numbers[1]}


REF = Needs(reference=True)
TOKENS = Needs(tokens=True)
KL = Needs(divergence=True)
P, T, R, U, A = pairwise, tokens, ranking, unpaired, anchors
W, C, S = robust, cells, presets

TABLE: dict[str, Entry] = {
    # functions of the margin h = D_w - D_l, D = log pi - log ref
    "dpo": Entry(P.dpo, "pair", "sp(-beta h)", "2305.18290", REF),
    "cdpo": Entry(P.cdpo, "pair", "sp(-beta h) + eps beta h", "Mitchell 2023", REF),
    "interpolated_dpo": Entry(
        P.interpolated_dpo, "pair", "sp(-beta (ds - gamma dr))", "2305.18290", REF
    ),
    "ipo": Entry(
        P.ipo, "pair", "(h - 1/(2 tau))^2", "2310.12036", REF, accept=ipo_options,
        example="ipo(tau=0.1, average=True)",
    ),
    "hinge": Entry(P.hinge, "pair", "max(0, 1 - beta h)", "2309.06657", REF),
    "exo": Entry(P.exo, "pair", "KL(sigmoid(beta h) || 1-eps)", "2402.00856", REF),
    "discopop": Entry(P.discopop, "pair", "mixture of sp(-m) and e^-m", "2406.08414", REF),
    "f_dpo": Entry(P.f_dpo, "pair", "sp(-beta (g(D_w) - g(D_l)))", "2309.16240", REF),
    "aot": Entry(P.aot, "pair", "sp(-beta (sort ds - sort dr))", "2406.05882", REF, sorts=True),
    "aot_unpaired": Entry(
        P.aot_unpaired, "pair", "sp(-beta (sort D_w - sort D_l))", "2406.05882", REF, sorts=True
    ),
    # with an offset
    "dpop": Entry(P.dpop, "pair", "sp(-beta (h - lambda max(0, -D_w)))", "2402.13228", REF),
    "r_dpo": Entry(P.r_dpo, "pair", "sp(-(beta h + alpha d|y|))", "2403.19159", REF),
    "odpo": Entry(P.odpo, "pair", "sp(-(beta h - alpha log gap))", "2402.10571", P.odpo_needs),
    # per token, or without a reference
    "ln_dpo": Entry(P.ln_dpo, "pair", "sp(-beta (D_w/|y_w| - D_l/|y_l|))", "2407.15229", REF),
    "simpo": Entry(
        P.simpo, "pair", "sp(-(beta d(s/|y|) - gamma))", "2405.14734", accept=simpo_options
    ),
    "contrastive": Entry(P.contrastive, "pair", "sp(-beta (s_w - s_l))", "2401.08417"),
    "slic": Entry(P.slic, "pair", "max(0, delta - (s_w - s_l))", "2305.10425"),
    "odds_ratio": Entry(P.odds_ratio, "pair", "sp(-d log odds)", "2403.07691"),
    "denoising_odds": Entry(P.denoising_odds, "pair", "sp(-T (f(e_w) - f(e_l)))", "2406.06424"),
    # chosen and rejected each for itself
    "nca": Entry(P.nca, "pair", "sp(-x_w) + sp(x_w)/2 + sp(x_l)/2, x = beta D", "2402.05369", REF),
    "sppo": Entry(P.sppo, "pair", "(D_w - 1/2beta)^2 + (D_l + 1/2beta)^2", "2405.00675", REF),
    "apo_zero": Entry(P.apo_zero, "pair", "sig(-beta D_w) + sig(beta D_l)", "2408.06266", REF),
    "apo_down": Entry(P.apo_down, "pair", "sig(beta D_w) + sig(-beta h)", "2408.06266", REF),
    "bco_pair": Entry(U.BcoPair, "pair", "sp(d - beta D_w) + sp(beta D_l - d)", "2404.04656", REF),
    # with the divergence of whole predictions
    "tdpo": Entry(P.tdpo, "pair", "sp(-beta (h - alpha (K_l - K_w)))", "2404.11999", REF | KL),
    "dspo": Entry(P.dspo, "pair", "|(p - t) - u (p - r)|^2", "ICLR 2025, xyfb9HHvMe", REF | KL),
    # single tokens
    "critical_token_dpo": Entry(
        T.critical_token_dpo,
        "pair",
        "sp(-beta (D_w - sum a_t delta_l,t))",
        "2411.19943",
        REF | TOKENS,
    ),
    "ld_dpo": Entry(
        T.ld_dpo, "pair", "dpo, tokens beyond the shorter count alpha", "2409.06411", REF | TOKENS
    ),
    # single responses, liked or not
    "kto": Entry(
        U.kto,
        "single",
        "w_c sig(-c beta (D - z0))",
        "2402.01306",
        U.kto_needs,
        prepare=U.kl_baseline,
    ),
    "bco": Entry(U.Bco, "single", "sp(-c (beta D - d))", "2404.04656", REF),
    "apo_zero_unpaired": Entry(
        U.apo_zero_unpaired, "single", "sig(-c beta D)", "2408.06266", REF
    ),
    # graded lists
    "plackett_luce": Entry(
        R.plackett_luce, "list", "sum_i [logsumexp_(j >= i) z_j - z_i]", "2305.18290", REF, width=3
    ),
    "lambda_ranking": Entry(
        R.lambda_ranking, "list", "sum_(i > j) lambda_ij sp(-(z_i - z_j))", "2410.12854", REF,
        width=3,
    ),
    "infonca": Entry(R.infonca, "list", "-sum_i q_i log softmax(z)_i", "2402.05369", REF, width=3),
    "nca_list": Entry(
        R.nca_list, "list", "sum_i [q_i sp(-z_i) + sp(z_i)/k]", "2402.05369", REF, width=3
    ),
    "exo_list": Entry(R.exo_list, "list", "KL(softmax(z) || q)", "2402.00856", REF, width=3),
    "all_pairs": Entry(
        R.all_pairs, "list", "mean over pairs of a list", "2410.12854", around="pair", rows=True,
        width=3,
    ),
    "best_worst": Entry(
        R.best_worst, "list", "best against worst of a list", "-", around="pair", rows=True, width=3
    ),
    # the chosen response alone
    "nll": Entry(A.nll, "anchor", "-log pi(y_w)", "-"),
    "chosen_anchor": Entry(A.chosen_anchor, "anchor", "sp(delta - beta D_w)", "2406.11839", REF),
    # wrappers for labels
    "robust": Entry(
        W.robust, "pair", "((1-eps) l - eps l') / (1-2eps)", "2403.00409", around="pair",
        flips=True, example="robust(dpo(), flip_rate=0.2)",
    ),
    "smooth": Entry(
        W.smooth, "pair", "(1-eps) l + eps l'", "Mitchell 2023", around="pair", flips=True,
        example="smooth(dpo(), rate=0.2)",
    ),
    "soft": Entry(
        W.soft, "pair", "q l + (1-q) l'", "2403.00409", W.soft_needs, around="pair", rows=True,
        flips=True,
    ),
    "em": Entry(
        W.Em, "pair", "w sp(-z) + (1-w) sp(z), z = l' - l", "2509.24159", W.em_needs,
        around="pair", rows=True, flips=True, one_way=True,
    ),
    "importance": Entry(
        W.importance, "pair", "weight l", "-", W.importance_needs, around="pair", rows=True
    ),
    "dynamic_beta": Entry(
        W.dynamic_beta, "pair", "l at (1 + strength f) D", "2502.10391", W.dynamic_beta_needs,
        around="pair", rows=True,
    ),
    "multi_objective": Entry(
        W.multi_objective,
        "pair",
        "l at (h - sum w_i dR_i / beta) / w",
        "2310.03708",
        W.multi_objective_needs,
        around="pair",
        example="multi_objective(dpo(), weight=0.5, margins='safety')",
    ),
    "logic": Entry(
        logics.logic,
        "pair",
        "sp(-beta log [P(check)/P(cross)])",
        "2412.17696",
        logics.logic_needs,
        accept=logics.logic_options,
        example="logic(loss='cCPO')",
    ),
    "wpo": Entry(
        T.wpo, "pair", "W(y_w) W(y_l) l", "2406.11827",
        Needs(tokens=True, stats=frozenset({"collision"})), around="pair", rows=True,
    ),
    # changes of score
    "averaged": Entry(T.averaged, "score", "means per token for sums", "-", around="any"),
    "weighted": Entry(
        T.weighted, "score", "sum_t w_t log p_t (/ sum_t w_t)", "2312.00849", TOKENS, around="any"
    ),
    "reference_free": Entry(
        T.reference_free, "score", "log ref = 0", "2401.08417", around="any", drops_reference=True
    ),
    "clipped": Entry(
        T.clipped, "score", "pi/ref clipped to 1 +- eps", "2311.13231", REF, around="any"
    ),
    # cells: candidates in several views
    "contrast": Entry(
        C.contrast, "batch", "l(cell, cell')", "2406.11839", C.contrast_needs, around="pair",
        example="contrast(dpo(), worse='chosen@crop')",
    ),
    "at": Entry(
        C.at, "batch", "anchor of another cell", "2506.11712", C.at_needs, around="anchor",
        example="at(chosen_anchor(), cell='rejected')",
    ),
    "guided": Entry(
        C.guided, "batch", "l at g log pi - (g-1) log pi(view)", "2411.02712", C.guided_needs,
        around="pair",
    ),
    "equal_margins": Entry(
        C.equal_margins, "batch", "(z1 - z2)^2", "2506.11712", C.equal_margins_needs
    ),
    "distilled_margins": Entry(
        C.distilled_margins, "batch", "CE(sig(beta z), sig(beta z'))", "2605.31312",
        C.distilled_margins_needs,
    ),
    "chip": Entry(
        C.chip, "batch", "sp(-beta (h + D_w - D_w@view - tau (K_l - K_w)))", "2501.16629",
        C.chip_needs,
    ),
    "p2_dpo": Entry(
        C.p2_dpo, "batch", "a (dpo + c sp(-beta (gain - gain_ref))) + (1-a) dpo", "2606.03376",
        C.p2_dpo_needs, width=4,
    ),
    # papers' names for compositions
    "cpo": Entry(S.cpo, "preset", "contrastive + alpha nll", "2401.08417"),
    "orpo": Entry(S.orpo, "preset", "nll + beta odds_ratio", "2403.07691"),
    "rpo": Entry(S.rpo, "preset", "dpo + eta beta nll(sum)", "2405.16436"),
    "mpo": Entry(S.mpo, "preset", "0.8 dpo + 0.2 bco_pair + nll", "2411.10442"),
    "mapo": Entry(S.mapo, "preset", "error + beta denoising_odds", "2406.06424"),
    "ddpo": Entry(S.ddpo, "preset", "weighted(dpo)", "2312.00849"),
    "modpo": Entry(
        S.modpo, "preset", "multi_objective(dpo)", "2310.03708",
        example="modpo(weight=0.5, margins='safety')",
    ),
    "mm_dpo": Entry(S.mm_dpo, "preset", "dynamic_beta(dpo) + nll", "2502.10391"),
    "triple_po": Entry(
        S.triple_po, "preset", "contrastive + alpha nll(gold)", "2405.16681", width=3
    ),
    "mdpo": Entry(S.mdpo, "preset", "dpo + contrast(crop) + chosen_anchor", "2406.11839"),
    "v_dpo": Entry(S.v_dpo, "preset", "guided(dpo)", "2411.02712"),
    "povid": Entry(S.povid, "preset", "(1 - a) dpo + a dpo(w, noisy)", "2402.11411", width=3),
    "da_dpo": Entry(S.da_dpo, "preset", "dpo at beta times a weight", "2601.00623"),
    "opa_dpo": Entry(
        S.opa_dpo, "preset", "contrasts of answers and images + anchors", "2501.09695", width=4
    ),
    "svco": Entry(S.svco, "preset", "four contrasts of images", "2502.13928"),
    "icvco": Entry(S.icvco, "preset", "contrasts of answers + distillation", "2605.31312"),
    "symmpo": Entry(S.symmpo, "preset", "contrasts of answers + anchors", "2506.11712", width=3),
}  # fmt: skip
