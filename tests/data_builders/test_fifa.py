"""FiFA's terms, their sum, and what it keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scripted_endpoint import endpoint
from tiny_text_encoder import save_text_encoder

from mmalign import cli
from mmalign.data import open_dataset, write_store
from mmalign.data_builders import neighbours
from mmalign.data_builders.fifa import build
from mmalign.data_builders.importance import Table, Weights, normalised, select
from mmalign.data_builders.neighbours import entropy, kth_distances
from mmalign.errors import UserError
from mmalign.records import Message, Preference, Sample, Text, pair

POINTS = np.array([[1, 0], [0, 1], [math.cos(0.1), math.sin(0.1)], [-1, 0]])
MARGIN, QUALITY = np.array([2.0, 0.4, 1.1, -0.3]), np.array([8.0, 9, 3, 10])
TABLE = Table(MARGIN, QUALITY, np.arange(4))


@pytest.mark.parametrize(
    ("k", "expected", "estimate"),
    [
        (1, (0.0999583385, 1.3417649447, 0.0999583385, 1.4142135624), 1.1255178477),
        (2, (1.4142135624, 1.4142135624, 1.3417649447, 1.9975005208), 2.9477547669),
    ],
)
def test_distances_and_entropy_of_the_worked_example(
    k: int, expected: Sequence[float], estimate: float
) -> None:
    found = kth_distances(POINTS, k)
    assert found == pytest.approx(expected, abs=1e-5)  # faiss computes in float32
    assert entropy(np.array(expected), 2, k) == pytest.approx(estimate, abs=1e-8)


@pytest.mark.parametrize(
    ("alpha", "scores", "order"),
    [
        (0.1, (1.6484991028, 1.4469929351, 0.2484991028, 0.8732867951), [0, 1, 3, 2]),
        (0.5, (4.8484991028, 5.0469929351, 1.4484991028, 4.8732867951), [1, 3, 0, 2]),
    ],
)
def test_importance_of_the_worked_example(
    alpha: float, scores: Sequence[float], order: list[int]
) -> None:
    found = select(TABLE, POINTS, 2, weights=Weights(alpha=alpha, gamma=0.5))
    assert found.importance == pytest.approx(scores, abs=1e-5)
    assert np.argsort(-found.importance).tolist() == order
    assert np.flatnonzero(found.selected).tolist() == sorted(order[:2])


def test_standardised_importance_of_the_worked_example() -> None:
    weights = Weights(alpha=1.0, gamma=1.0, normalise="zscore")
    found = select(TABLE, POINTS, 4, weights=weights)
    expected = (0.5951243158, 1.0671648610, -2.3188254611, 0.6565362842)
    assert found.importance == pytest.approx(expected, abs=1e-5)
    assert found.selected.all()


def test_what_changes_no_order_changes_nothing() -> None:
    alone = Weights(alpha=0.0, gamma=0.0)
    assert np.argsort(-select(TABLE, POINTS, 2, weights=alone).importance).tolist() == [0, 2, 1, 3]
    larger = select(TABLE, 10 * POINTS, 2).importance
    assert larger == pytest.approx(select(TABLE, POINTS, 2).importance + 0.5 * math.log(10))
    order = np.array([2, 0, 3, 1])
    moved = Table(MARGIN[order], QUALITY[order], np.arange(4))
    kept = select(TABLE, POINTS, 2).selected
    assert select(moved, POINTS[order], 2).selected.tolist() == kept[order].tolist()


@pytest.fixture
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "EXACT_UP_TO", 100)
    monkeypatch.setattr(neighbours, "CELL", 20)


@pytest.mark.parametrize("dimensions", [8, 200])
def test_the_nearest_cells_hold_nearly_all_neighbours(
    dimensions: int, monkeypatch: pytest.MonkeyPatch, small_cells: None
) -> None:
    centres = np.random.default_rng(0).normal(size=(40, dimensions)) * 4
    noise = np.random.default_rng(1).normal(size=(2000, dimensions))
    points = np.repeat(centres, 50, axis=0) + noise
    found = kth_distances(points, 3)
    monkeypatch.setattr(neighbours, "EXACT_UP_TO", 5000)
    exact = kth_distances(points, 3)
    assert (found >= exact - 1e-5).all()
    assert np.mean(found <= exact + 1e-5) > 0.95


def test_equal_points_are_at_distance_0_and_far_ones_have_neighbours(small_cells: None) -> None:
    alike, far = np.full((1000, 4), 1 / 3), 1e3 * np.eye(4) * np.arange(1, 5)[:, None]
    points = np.concatenate([alike, far])
    found = kth_distances(points, 40)
    assert (found[:1000] == 0).all()
    expected = [np.sort(np.linalg.norm(points - each, axis=1))[40] for each in far]
    assert found[1000:] == pytest.approx(expected, rel=1e-6)


def test_small_distances_are_not_lost_in_rounding() -> None:
    points = np.ones((3, 64), np.float32)
    points[1, 0] += 1e-5
    points[2] *= 2
    assert kth_distances(points, 1)[:2] == pytest.approx([1e-5, 1e-5], rel=1e-2)


def test_too_few_points_have_no_neighbour() -> None:
    with pytest.raises(UserError, match="no 4-th nearest"):
        kth_distances(POINTS, 4)


def test_ranks_lie_between_0_and_1() -> None:
    assert normalised(np.array([3.0, 1.0, 2.0]), "rank").tolist() == [1.0, 0.0, 0.5]


def slow_greedy(base: np.ndarray, points: np.ndarray, count: int, gamma: float) -> list[int]:
    """By the definition: in each step, every pair's gain anew."""
    taken: list[int] = []
    reach = float(np.linalg.norm(points.max(0) - points.min(0)))
    while len(taken) < count:
        gains = [
            -math.inf
            if i in taken
            else base[i]
            + gamma
            * math.log(
                max(
                    1e-6,
                    min([reach, *(float(np.linalg.norm(points[i] - points[j])) for j in taken)]),
                )
            )
            for i in range(len(base))
        ]
        taken.append(int(np.argmax(gains)))
    return taken


def test_greedy_takes_what_gains_most_in_each_step() -> None:
    draws = np.random.default_rng(2)
    points, base = draws.normal(size=(60, 3)), draws.normal(size=60)
    table = Table(base, np.zeros(60), np.arange(60))
    found = select(
        table, points, 12, weights=Weights(alpha=0.0, gamma=0.7), diversity="greedy"
    ).selected
    assert np.flatnonzero(found).tolist() == sorted(slow_greedy(base, points, 12, 0.7))


def preference(prompt: str, margin: float) -> Preference:
    asked = (Message("user", (Text(prompt),)),)
    samples = [Sample(asked, (Text(f"{margin} {word}"),)) for word in ("good", "bad")]
    return pair(*samples, aux={"margin": margin})


def places(prompts: Sequence[str]) -> np.ndarray:
    return np.array([[float(len(prompt)), 1.0] for prompt in prompts])


def test_the_builder_keeps_the_best_and_says_why() -> None:
    data = [preference("a" * (1 + i % 5), margin=i / 10) for i in range(20)]
    kept = list(build(data, embed=places, keep=0.2, weights=Weights(gamma=0.0), notes={"x": 1}))
    assert [p.aux["margin"] for p in kept] == [1.6, 1.7, 1.8, 1.9]
    assert kept[0].source.builder == "fifa"
    assert kept[0].source.details["importance"] == pytest.approx(1.6)
    assert kept[0].source.details["x"] == 1
    assert kept[0].source.parents == (data[16].id,)
    one_each = build(data, embed=places, keep=5, weights=Weights(gamma=0.0), max_per_prompt=1)
    assert len({p.chosen.prompt_id for p in one_each}) == 5


def test_quality_and_disagreement_keep_pairs_out() -> None:
    data = [preference("a", -2.0), preference("bb", 1.0), preference("ccc", 0.5)]

    def quality(prompts: Sequence[str]) -> list[float]:
        return [{"a": 9.0, "bb": 0.0, "ccc": 7.0}[prompt] for prompt in prompts]

    flat = Weights(alpha=0.0, gamma=0.0)
    kept = list(build(data, embed=places, keep=1, weights=flat))
    assert kept[0].aux["margin"] == -2.0
    kept = list(build(data, embed=places, keep=1, weights=flat, on_disagree="drop"))
    assert kept[0].aux["margin"] == 1.0
    kept = list(
        build(
            data,
            embed=places,
            quality_of=quality,
            keep=1,
            weights=flat,
            on_disagree="drop",
            least_quality=1.0,
        )
    )
    assert kept[0].aux["margin"] == 0.5


def test_a_pair_without_a_margin_is_named() -> None:
    asked = (Message("user", (Text("a"),)),)
    bare = pair(Sample(asked, (Text("x"),)), Sample(asked, (Text("y"),)))
    with pytest.raises(UserError, match="record 0 has no margin"):
        list(build([bare], embed=places))


def test_the_command_measures_margins_distances_and_quality(tmp_path: Path) -> None:
    write_store(
        [preference(f"{'a fox ' * (1 + i % 4)}{i}", 0.0) for i in range(12)], tmp_path / "in"
    )
    encoder = save_text_encoder(tmp_path / "encoder")

    def rate(body: dict[str, Any], number: int) -> str:
        return json.dumps({"score": number % 10, "harmful": False})

    options = {
        "reward": "rule(name='includes', word='good', least_words=0)",
        "embedder": str(encoder),
        "keep": "4",
        "scores": str(tmp_path / "scores.parquet"),
        "alpha": "2.0",
        "judge": "m",
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    words = ["build", "fifa", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *flags]
    with endpoint(rate) as script:
        assert cli.main([*words, "--judge-url", script.url]) == 0
    kept = list(open_dataset(tmp_path / "out"))
    scores = pq.read_table(tmp_path / "scores.parquet").to_pydict()
    assert len(scores["row"]) == 12
    assert scores["margin"] == [1.0] * 12
    expected = np.array(scores["margin"]) + 2 * np.array(scores["quality"])
    expected += 0.5 * np.array(scores["diversity"])
    assert scores["importance"] == pytest.approx(expected)
    best = sorted(range(12), key=lambda row: -expected[row])[:4]
    assert sorted(best) == [row for row in range(12) if scores["selected"][row]]
    assert [p.source.details["importance"] for p in kept] == [
        scores["importance"][row] for row in sorted(best)
    ]
    assert kept[0].source.details["embedder"].startswith("embedder:encoder@")


def test_a_judge_and_a_model_are_one_too_many(tmp_path: Path) -> None:
    write_store([preference("a", 1.0)], tmp_path / "in")
    words = ["build", "fifa", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--judge", "m", "--quality-model", "x", "--gamma", "0"]) == cli.USER
