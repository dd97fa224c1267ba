"""Flow-DPO: a constant beta against one that falls as (1 - t)^2, on a flow of points in the plane.

Each schedule gets the beta of a sweep that serves it best on the other seeds, so that the scale of
beta decides nothing. What counts is the reward of samples that still look like data; a sample that
left the ring counts as the worst, -1.
"""

from __future__ import annotations

import torch
from _claim import Claim, Options, Outcome, figure, over_seeds, run, surely_above
from _points import align, base_model, on_the_ring, pairs, reward, sample
from torch import Tensor

CLAIM = Claim(
    "flow_dpo",
    "With rectified flow, DPO with a constant beta aligns better than with beta (1 - t)^2.",
    "arXiv:2501.13918",
    "Fine-tuning on the chosen samples with as many steps; the model before.",
)
BETAS = (3.0, 6.0, 12.0, 25.0, 50.0)
SCHEDULES = {"constant": "constant", "(1 - t)^2": "one_minus_t_sq"}


def measure(options: Options) -> Outcome:
    learn, steps, judged = (50, 10, 500) if options.quick else (2_000, 400, 4_000)
    found: dict[str, list[float]] = {}
    left: dict[str, list[float]] = {}

    def note(setting: str, points: Tensor) -> None:
        good = on_the_ring(points)
        found.setdefault(setting, []).append(torch.where(good, reward(points), -1.0).mean().item())
        left.setdefault(setting, []).append(1 - good.float().mean().item())

    for seed in range(options.seeds):
        base = base_model(steps=learn, seed=seed)
        chosen, rejected = pairs(base, judged, seed=10 * seed + 1)
        note("before", sample(base, judged, seed=99))
        for name, schedule in SCHEDULES.items():
            for beta in BETAS:
                policy = align(
                    base, chosen, rejected, f"dpo(beta={beta})", schedule=schedule, steps=steps,
                    seed=seed,
                )  # fmt: skip
                note(f"{name}, beta {beta:g}", sample(policy, judged, seed=99))
        policy = align(base, chosen, rejected, "nll()", steps=steps, seed=seed)
        note("nll (control)", sample(policy, judged, seed=99))
    return _outcome(found, left)


def _outcome(found: dict[str, list[float]], left: dict[str, list[float]]) -> Outcome:
    by_schedule = {name: _with_chosen_beta(found, name) for name in SCHEDULES}
    constant, falling = by_schedule.values()
    control = found["nll (control)"]
    figures = [figure(f"{name}, beta chosen", "reward", v) for name, v in by_schedule.items()]
    figures += [figure(setting, "reward", values) for setting, values in found.items()]
    figures += [figure(setting, "samples off the ring", each) for setting, each in left.items()]
    means = {
        "before": over_seeds(found["before"]).value,
        **{name: over_seeds(values).value for name, values in by_schedule.items()},
        "nll (control)": over_seeds(control).value,
    }
    gain = over_seeds([a - b for a, b in zip(constant, falling, strict=True)])
    return Outcome(
        figures,
        surely_above(constant, falling) and surely_above(constant, control),
        "Reward: "
        + ", ".join(f"{setting} {value:.2f}" for setting, value in means.items())
        + f"; constant less falling {gain.value:+.3f} [{gain.low:.3f}, {gain.high:.3f}].",
        f"Each schedule has the best beta of {len(BETAS)} from {min(BETAS):g} to {max(BETAS):g}, "
        "chosen for each seed by the others. Points in a plane, not videos.",
    )


def _with_chosen_beta(found: dict[str, list[float]], schedule: str) -> list[float]:
    """Each seed's reward with the beta that does best on the other seeds."""
    swept = [values for setting, values in found.items() if setting.startswith(f"{schedule}, ")]
    return [
        max(swept, key=lambda values: sum(values) - values[seed])[seed]
        for seed in range(len(swept[0]))
    ]


if __name__ == "__main__":
    run(CLAIM, measure)
