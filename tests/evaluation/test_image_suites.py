"""The suites of generators from prompts to figures and page, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from PIL import Image
from scripted_endpoint import endpoint
from tiny_clip import save_transformers
from tiny_diffusion import SIDE, picture, sample
from tiny_pipelines import tiny

from mmalign import cli
from mmalign.adapters.diffusion import load_diffusion
from mmalign.data.store import write_store
from mmalign.evaluation.images.detectors import load_detector
from mmalign.records import pair

DRAWING = ["--steps", "2", "--resolution", str(SIDE), "--batch-size", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    tiny("stable_diffusion").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that changes what is drawn."""
    policy = load_diffusion(str(model), lora={"r": 2})
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in policy.policy.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("lora")
    policy.save(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_transformers(tmp_path_factory.mktemp("clip"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    Path("prompts.txt").write_text("cat\ndog\nhen\n")


def evaluate(suite: str, *options: str | Path) -> dict[str, Any]:
    """Run a suite and return its metrics.json."""
    assert cli.main(["evaluate", suite, "--out", "run", *map(str, options)]) == 0
    return json.loads(Path("run/metrics.json").read_text())


def by_clip(clip: Path) -> str:
    return f"clip(model={str(clip)!r}, pretrained=None)"


def test_win_rate_of_an_adapter_against_its_model(model: Path, adapter: Path, clip: Path) -> None:
    options = [
        "--model", model, "--adapter", adapter, "--prompts", "prompts.txt",
        "--rewards", by_clip(clip), *DRAWING,
    ]  # fmt: skip
    metrics = evaluate("win-rate", *options)
    name = by_clip(clip)
    gains = metrics["difference"][name]["value"]
    rate = metrics["after"][f"win rate by {name}"]["value"]
    assert gains != 0
    assert rate in (0, 1 / 3, 2 / 3, 1)
    images = {file: file.read_bytes() for file in Path("run").rglob("*.png")}
    assert len(images) == 6
    kept = Path("run/images-after/prompts-00001_0.png")
    kept.unlink()
    assert evaluate("win-rate", *options)["after"] == metrics["after"]
    assert kept.read_bytes() == images[kept]
    assert "data:image/jpeg" in Path("run/report.html").read_text()


def test_a_model_against_itself_wins_half(model: Path, clip: Path) -> None:
    metrics = evaluate(
        "win-rate", "--model", model, "--baseline", model, "--prompts", "prompts.txt",
        "--rewards", by_clip(clip), *DRAWING,
    )  # fmt: skip
    assert metrics["after"][f"win rate by {by_clip(clip)}"]["value"] == 0.5


def test_a_judge_sees_both_orders(tmp_path: Path) -> None:
    """One that always takes the first image prefers neither; one that sees red prefers red."""
    for stage, colour in (("old", "blue"), ("new", "red")):
        Path(stage).mkdir()
        for number in range(3):
            Image.new("RGB", (16, 16), colour).save(f"{stage}/prompts-{number:05d}_0.png")
    red = Path("new/prompts-00000_0.png").read_bytes()

    def first(body: dict[str, Any], number: int) -> str:
        return '{"reason": "", "better": "first"}'

    def redder(body: dict[str, Any], number: int) -> str:
        import base64

        shown = [p["image_url"]["url"] for p in body["messages"][0]["content"] if "image_url" in p]
        place = [base64.b64decode(url.partition(",")[2]) == red for url in shown].index(True)
        return json.dumps({"reason": "redder", "better": ("first", "second")[place]})

    for reply, rate in ((first, 0.5), (redder, 1.0)):
        with endpoint(reply) as script:
            metrics = evaluate(
                "win-rate", "--model", "new", "--baseline", "old", "--prompts", "prompts.txt",
                "--judge", "m",
                "--judge-url", script.url,
            )  # fmt: skip
        assert metrics["after"]["win rate by m"]["value"] == rate
        Path("run/judge.jsonl").unlink()


def test_scores_of_one_model_with_categories_and_spread(model: Path, clip: Path) -> None:
    Path("photo.json").write_text('["a cat"]')
    Path("anime.json").write_text('["a cat"]')
    metrics = evaluate(
        "image-scores", "--model", model, "--prompts", "photo.json", "anime.json",
        "--rewards", by_clip(clip), "--spread", clip, "--per-prompt", "2", *DRAWING,
    )  # fmt: skip
    name = by_clip(clip)
    assert set(metrics["model"]) == {name, f"{name}: photo", f"{name}: anime", "diversity"}
    assert 0 < metrics["model"]["diversity"]["value"] < 2


def yolos(folder: Path) -> None:
    """A detector that sees five dogs in every image."""
    config = t.YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=[32, 32], patch_size=8, num_detection_tokens=5,
        id2label={0: "dog", 1: "cat"}, label2id={"dog": 0, "cat": 1},
    )  # fmt: skip
    net = t.YolosForObjectDetection(config)
    with torch.no_grad():
        net.class_labels_classifier.layers[-1].bias.copy_(torch.tensor([9.0, -9.0, -9.0]))
    net.save_pretrained(folder)
    t.YolosImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def mask2former(folder: Path) -> None:
    """A segmenter, as in the benchmark, that sees five dogs, each as large as the image."""
    backbone = t.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2],
        window_size=4, out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = t.Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
        dim_feedforward=16, num_queries=5,
        id2label={0: "dog", 1: "cat"}, label2id={"dog": 0, "cat": 1},
    )  # fmt: skip
    net = t.Mask2FormerForUniversalSegmentation(config)
    embedder = net.model.transformer_module.decoder.mask_predictor.mask_embedder
    points = [layer for layer in embedder.modules() if isinstance(layer, torch.nn.Linear)][-1]
    features = net.model.pixel_level_module.decoder.mask_projection
    with torch.no_grad():
        net.class_predictor.bias.copy_(torch.tensor([9.0, -9.0, -9.0]))
        for layer in (points, features):  # their products are the logits of the masks
            layer.weight.zero_()
            layer.bias.fill_(1.0)
    net.save_pretrained(folder)
    t.Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


@pytest.fixture(scope="module", params=[yolos, mask2former])
def detector(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    request.param(folder)
    return folder


def test_a_segmenter_tells_where_objects_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mask2former(tmp_path)
    seen = load_detector(str(tmp_path))(Image.new("RGB", (48, 24), "red"), 0.9)
    assert [each.found.name for each in seen] == ["dog"] * 5
    for each in seen:
        assert each.found.box == (0.0, 0.0, 48.0, 24.0)
        assert each.mask is not None
        assert each.mask.shape == (24, 48)
        assert bool(each.mask.all())


def test_geneval_of_a_detector_that_sees_five_dogs_everywhere(model: Path, detector: Path) -> None:
    rows = [
        {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"},
        {"tag": "two_object", "include": [{"class": "cat", "count": 1}], "prompt": "a cat"},
        {
            "tag": "counting",
            "include": [{"class": "dog", "count": 2}],
            "exclude": [{"class": "dog", "count": 3}],
            "prompt": "two dogs",
        },
    ]
    Path("metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = evaluate(
        "geneval", "--model", model, "--metadata", "metadata.jsonl", "--detector", detector,
        "--per-prompt", "1", *DRAWING,
    )  # fmt: skip
    values = {name: figure["value"] for name, figure in metrics["model"].items()}
    assert values == {
        "GenEval": pytest.approx(1 / 3), "single_object": 1, "two_object": 0, "counting": 0,
    }  # fmt: skip
    faults = [
        json.loads(x)["fault"] for x in Path("run/verdicts-model.jsonl").read_text().splitlines()
    ]
    assert faults == ["", "0 of 1 cat", "3 or more dog"]
    assert "0 of 1 cat" in Path("run/report.html").read_text()


def test_preference_accuracy_equals_the_errors_computed_apart(model: Path, adapter: Path) -> None:
    write_store(
        (
            pair(sample(f"cat {i}", picture(2 * i)), sample(f"cat {i}", picture(2 * i + 1)))
            for i in range(4)
        ),
        Path("votes"),
    )
    options = [
        "--model", model, "--adapter", adapter, "--data", "votes", "--draws", "3",
        "--resolution", str(SIDE),
    ]  # fmt: skip
    metrics = evaluate("preference-accuracy", *options)
    rewards = []
    from mmalign.data.opening import open_dataset
    from mmalign.training.seeds import derive

    policies = [
        load_diffusion(str(model), adapter=lora, draws=3, resolution=SIDE)
        for lora in (None, adapter)
    ]
    for row, preference in enumerate(open_dataset("votes")):
        seeds = [derive(0, "row", 0, row)] * 2
        scored = []
        for policy in policies:
            inputs = policy.encode(policy.collate(preference.candidates, seeds))
            with torch.no_grad():
                scored.append(policy.log_probs(policy.policy, inputs).log_probs)
        rewards.append((scored[1] - scored[0]).tolist())
    expected = sum(chosen > rejected for chosen, rejected in rewards) / 4
    assert metrics["model"]["implicit reward accuracy"]["value"] == expected
    margin = sum(chosen - rejected for chosen, rejected in rewards) / 4
    assert metrics["model"]["reward margin"]["value"] == pytest.approx(margin, rel=1e-4)
    assert evaluate("preference-accuracy", *options)["model"] == metrics["model"]


@pytest.mark.parametrize(
    ("suite", "options", "word"),
    [
        ("win-rate", ["--prompts", "prompts.txt"], "--baseline"),
        ("image-scores", ["--prompts", "prompts.txt", "--spread", "x"], "--per-prompt"),
        ("geneval", ["--metadata", "m.jsonl", "--detector", "x"], "include"),
        ("preference-accuracy", ["--data", "votes"], "--baseline"),
    ],
)
def test_mistakes_are_answered_in_words(
    model: Path, capsys: pytest.CaptureFixture[str], suite: str, options: list[str], word: str
) -> None:
    Path("m.jsonl").write_text('{"prompt": "a dog", "tag": "single_object"}\n')
    assert cli.main(["evaluate", suite, "--model", str(model), *options]) == 2
    assert word in capsys.readouterr().err


def test_images_of_another_model_are_not_taken_for_this_one(
    model: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--prompts", "prompts.txt", "--rewards", by_clip(clip), *DRAWING, "--limit", "1"]
    evaluate("image-scores", "--model", model, *options)
    again = ["evaluate", "image-scores", "--out", "run", "--model", str(model), *options]
    assert cli.main([*again, "--seed", "1"]) == 2
    assert "--no-resume" in capsys.readouterr().err
    assert cli.main([*again, "--seed", "1", "--no-resume"]) == 0
