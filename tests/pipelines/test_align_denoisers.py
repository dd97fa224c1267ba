"""`mmalign align-diffusion` and `align-video` from data to model, on tiny pipelines."""

from __future__ import annotations

import json
import math
import sqlite3
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from tiny_clip import save_open_clip
from tiny_diffusion import SIDE, picture, sample
from tiny_pipelines import tiny

from mmalign import cli
from mmalign.data.store import write_store
from mmalign.pipelines.win_rates import WinRates
from mmalign.records import Media, pair
from mmalign.training.log import JsonLines

FRAMES = 2


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    tiny("stable_diffusion").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def video_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("video")
    tiny("text_to_video_sd").save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(cli.DEBUG, raising=False)


def votes(frames: int = 1, count: int = 6) -> str:
    """Preferences between pictures of noise, in our own format."""
    write_store(
        (
            pair(
                sample(f"cat {i}", picture(2 * i, frames=frames)),
                sample(f"cat {i}", picture(2 * i + 1, frames=frames)),
            )
            for i in range(count)
        ),
        Path("votes"),
    )
    return "votes"


def align_images(model: Path, *more: str) -> int:
    """Run the command with quick settings, of which `more` may replace any."""
    quick = {
        "--model": str(model), "--data": "votes", "--resolution": str(SIDE), "--batch-size": "4",
        "--steps": "2", "--learning-rate": "0.001", "--lora-rank": "2", "--held-out": "0.4",
        "--samples": "2", "--sample-steps": "2",
    }  # fmt: skip
    kept = [word for flag, value in quick.items() if flag not in more for word in (flag, value)]
    return cli.main(["align-diffusion", *kept, *more])


def test_leaves_all_that_it_promises(image_model: Path) -> None:
    votes()
    assert align_images(image_model, "--out", "run", "--cache", "cache", "--merged") == 0
    rows = JsonLines(Path("run/metrics.jsonl")).rows()
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["before"]["reward_accuracy"]["value"] == 0.5
    assert metrics["after"]["chosen_ratio"]["value"] != 0.0
    report = Path("run/report.html").read_text()
    assert report.count("data:image/png;base64,") == 4  # two prompts, before and after
    assert "time 0.8 to 1" in report
    assert len(list(Path("run/samples").glob("*/*.png"))) == 4
    assert "load_lora_weights" in Path("run/model/README.md").read_text()
    assert (Path("run/merged") / "model_index.json").exists()


def test_plain_diffusers_samples_what_the_report_shows(image_model: Path) -> None:
    votes()
    assert align_images(image_model, "--out", "run", "--learning-rate", "0.05") == 0
    base = DiffusionPipeline.from_pretrained(image_model)
    before = base.unet.state_dict()
    base.load_lora_weights("run/model")
    assert base.get_active_adapters()
    down = [name for name, _ in base.unet.named_parameters() if "lora_B" in name]
    assert down
    weights = dict(base.unet.named_parameters())
    assert any(weights[name].abs().max() > 0 for name in down)
    assert not any("lora" in name for name in before)
    pictures = [Path(f"run/samples/{stage}/000.png").read_bytes() for stage in ("before", "after")]
    assert pictures[0] != pictures[1]


def test_samples_during_training_with_released_encoders(image_model: Path) -> None:
    votes()
    options = ["--cache", "cache", "--release-encoders", "--average", "0.9"]
    law = ["--timestep-law", "uniform(strata=4)", "--sample-every", "1"]
    assert align_images(image_model, "--out", "run", *options, *law) == 0
    stages = {path.name for path in Path("run/samples").iterdir()}
    assert stages == {"before", "step-000001", "step-000002", "after"}
    last, after = (Path(f"run/samples/{stage}") for stage in ("step-000002", "after"))
    assert (last / "000.png").read_bytes() == (after / "000.png").read_bytes()
    rows = JsonLines(Path("run/metrics.jsonl")).rows()
    assert rows[0]["chosen_error_growth"] == pytest.approx(0.0, abs=1e-6)
    assert rows[1]["chosen_error_growth"] != 0.0


def test_rewards_compare_samples_with_those_from_before_training(
    image_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    votes()
    save_open_clip(Path("clip"))
    spec = "clip(model='clip', pretrained=None)"
    judged = ["--sample-every", "1", "--sample-rewards", spec, "--learning-rate", "0.05"]
    assert align_images(image_model, "--out", "run", *judged) == 0
    name = f"win_rate/{spec}"
    last = JsonLines(Path("run/metrics.jsonl")).rows()[-1][name]
    found = json.loads(Path("run/metrics.json").read_text())["after"][name]
    assert found["value"] == last
    assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
    stages = {stage: Path(f"run/samples/{stage}/000.png") for stage in ("before", "after")}
    pictures = [Media("image", data=stages[stage].read_bytes()) for stage in stages]
    assert WinRates([spec], ["cat"], pictures[:1], Path("own.sqlite"))(pictures[:1]) == {spec: 0.5}
    report = Path("run/report.html").read_text()
    assert "Win rates" in report
    assert align_images(image_model, "--out", "bad", "--sample-rewards", "clop") == 2
    assert "no reward 'clop'" in capsys.readouterr().err
    assert not Path("bad/checkpoints").exists()


def test_a_run_that_destroys_the_model_is_stopped(
    image_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    votes()
    worse = ["--objective", "dpo(beta=1.0) + -100*nll()", "--learning-rate", "0.05"]
    more = ["--steps", "25", "--warmup", "0", "--samples", "0", "--error-guard", "0.001"]
    assert align_images(image_model, "--out", "run", *worse, *more) == 2
    error = capsys.readouterr().err
    assert "the denoising errors grew" in error
    assert "nll()" in error
    assert list(Path("run/checkpoints").glob("step-*"))


def test_broken_pictures_cost_nothing_but_themselves(image_model: Path) -> None:
    for number in range(24):
        Path(f"{number}.png").write_bytes(picture(number).content)
    Path("0.png").write_bytes(b"no picture")
    for broken in (5, 8):
        Path(f"{broken}.png").write_bytes(Path(f"{broken}.png").read_bytes()[:60])
    Path("10.png").unlink()
    lines = [f"cat {i},{2 * i}.png,{2 * i + 1}.png,a" for i in range(12)]
    Path("votes.csv").write_text("\n".join(["prompt,image_a,image_b,winner", *lines]))
    assert align_images(image_model, "--data", "votes.csv", "--out", "run") == 0
    noted = {
        path.name: {row["row"] for row in JsonLines(path).rows()}
        for path in Path("run").glob("*.jsonl")
        if path.name != "metrics.jsonl"
    }
    assert noted.pop("unreadable.jsonl") == {5}
    assert set(noted) == {"refused-0.jsonl", "unmeasured.jsonl"}
    assert set().union(*noted.values()) == {0, 2, 4}
    assert json.loads(Path("run/metrics.json").read_text())["n"] > 0


def test_released_encoders_need_a_cache(
    image_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    votes()
    assert align_images(image_model, "--out", "run", "--release-encoders") == 2
    assert "--cache FOLDER" in capsys.readouterr().err


def test_a_second_run_reads_only_the_cache(image_model: Path) -> None:
    votes()
    assert align_images(image_model, "--out", "one", "--cache", "cache") == 0
    files = {path: path.stat().st_mtime_ns for path in Path("cache").rglob("*.safetensors")}
    assert len(files) == 6 * 2 + 6  # two pictures and one prompt each
    assert align_images(image_model, "--out", "two", "--cache", "cache") == 0
    after = {path: path.stat().st_mtime_ns for path in Path("cache").rglob("*.safetensors")}
    assert after == files
    rows = [JsonLines(Path(out) / "metrics.jsonl").rows() for out in ("one", "two")]
    losses = [[row["loss"] for row in found] for found in rows]
    assert losses[0] == losses[1]


def test_run_yaml_repeats_the_run(image_model: Path) -> None:
    votes()
    assert align_images(image_model, "--out", "run", "--prompt-dropout", "0.5") == 0
    assert cli.main(["align-diffusion", "--config", "run/run.yaml", "--out", "again"]) == 0
    name = "model/pytorch_lora_weights.safetensors"
    first, again = load_file(f"run/{name}"), load_file(f"again/{name}")
    assert first.keys() == again.keys()
    assert all(torch.equal(first[weight], again[weight]) for weight in first)


@pytest.mark.parametrize(
    "options",
    [
        ["--lora-rank", "0", "--reference", "cache", "--steps", "1"],
        ["--objective", "mapo()", "--draws", "2", "--weighting", "min_snr(5)"],
        ["--objective", "dpo(beta=500.0) + nll()", "--streaming", "--samples", "0"],
    ],
    ids=lambda options: " ".join(options),
)
def test_ways_to_train(image_model: Path, options: list[str]) -> None:
    votes()
    assert align_images(image_model, "--out", "run", *options) == 0
    assert (Path("run/model/README.md")).exists()


def test_a_cache_that_cannot_know_the_noise_of_later_passes_is_refused(
    image_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    votes()
    options = ["--lora-rank", "0", "--reference", "cache", "--epochs", "3", "--steps", "9"]
    assert align_images(image_model, "--out", "run", *options) == 2
    assert "--reference copy" in capsys.readouterr().err


def test_noises_that_repeat_are_asked_of_the_reference_once(image_model: Path) -> None:
    """Two turns of noises over four passes: the cache holds two rows per sample, also where all
    weights are trained, and losses equal those against a copy of the weights."""
    votes(count=4)
    full = ["--lora-rank", "0", "--steps", "4", "--noise-cycle", "2", "--held-out", "0"]
    losses = {}
    for kind in ("cache", "copy"):
        assert align_images(image_model, "--out", kind, "--reference", kind, *full) == 0
        losses[kind] = [row["loss"] for row in JsonLines(Path(kind) / "metrics.jsonl").rows()]
    assert losses["cache"] == pytest.approx(losses["copy"], rel=1e-4)
    with sqlite3.connect("cache/reference.sqlite") as rows:
        assert rows.execute("SELECT COUNT(*) FROM rows").fetchone() == (2 * 8,)


def test_videos(video_model: Path) -> None:
    votes(frames=FRAMES)
    command = [
        "align-video", "--model", str(video_model), "--data", "votes", "--frames", str(FRAMES),
        "--height", str(SIDE), "--width", str(SIDE), "--batch-size", "2", "--steps", "1",
        "--lora-rank", "2", "--samples", "1", "--sample-steps", "1", "--out", "run",
    ]  # fmt: skip
    assert cli.main(command) == 0
    assert JsonLines(Path("run/metrics.jsonl")).rows()[0]["loss"] == pytest.approx(
        math.log(2), abs=1e-5
    )
    assert "data:image/webp;base64," in Path("run/report.html").read_text()


def test_a_video_model_is_sent_to_its_own_command(
    video_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    votes()
    assert align_images(video_model, "--out", "run") == 2
    error = capsys.readouterr().err
    assert "align-video" in error
