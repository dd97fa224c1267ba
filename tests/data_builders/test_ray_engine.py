"""A Ray cluster of several nodes makes the same dataset, to the byte."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmalign.data_builders import corrupt, engine
from mmalign.data_builders.engine import build
from mmalign.data_builders.records import read_records
from mmalign.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes on this machine."""
    ray = pytest.importorskip("ray")  # an extra that the tests do without
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield ray
    ray.shutdown()
    cluster.shutdown()


def source(folder: Path) -> Path:
    Image.new("RGB", (24, 16), "red").save(folder / "a.png")
    (folder / "b.png").write_bytes(b"no image")
    rows = [
        {"image": f"{'b' if i % 40 == 7 else 'a'}.png", "caption": f"{i} red cars on the left"}
        for i in range(200)
    ]
    path = folder / "photos.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{torn\n")
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_both_engines_make_the_same_dataset(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = functools.partial(engine.StoreWriter, shard_rows=50)
    monkeypatch.setattr(engine, "StoreWriter", writer)
    assert sum(node["Alive"] for node in cluster.nodes()) == 2
    path = source(tmp_path)
    local = build(corrupt.build, read_records(path), tmp_path / "local", show=False)
    ray = build(corrupt.build, read_records(path), tmp_path / "ray", engine="ray", show=False)
    assert local == ray
    assert (ray.read, ray.refused) == (201, 6)
    assert files(tmp_path / "local") == files(tmp_path / "ray")


def test_wrong_settings_reach_the_user_as_they_are(cluster: Any, tmp_path: Path) -> None:
    wrong = functools.partial(corrupt.build, faults=("typo",))
    with pytest.raises(UserError, match="there is no typo"):
        build(wrong, read_records(source(tmp_path)), tmp_path / "out", engine="ray", show=False)
