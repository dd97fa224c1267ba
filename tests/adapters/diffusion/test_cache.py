"""What VAE and text encoders computed is computed once, in this run and the next."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_diffusion import adapter, options, picture, sample, samples
from tiny_pipelines import tiny

from mmalign.adapters.diffusion import DiffusionAdapter, load_diffusion
from mmalign.adapters.diffusion.cache import Store
from mmalign.errors import UserError
from mmalign.records import Media, Sample


def score(found: DiffusionAdapter, rows: list[Sample]) -> torch.Tensor:
    seeds = [1, 1, 2, 2][: len(rows)]
    with torch.no_grad():
        inputs = found.encode(found.collate(rows, seeds))
        return found.log_probs(found.policy, inputs).log_probs


@pytest.mark.parametrize("name", ["stable_diffusion", "sana", "wan", "z_image"])
def test_a_second_epoch_and_a_second_run_read_the_cache(name: str, tmp_path: Path) -> None:
    rows = samples(name, 4)
    plain = score(adapter(name), rows)
    first = adapter(name, cache=tmp_path)
    assert torch.equal(score(first, rows), plain)
    assert first.encoders.calls == {"media": 4, "text": 4}
    assert torch.equal(score(first, rows), plain)
    assert first.encoders.calls == {"media": 4, "text": 4}
    first.release_encoders()
    assert first.encoders.released
    assert torch.equal(score(first, rows), plain)
    second = adapter(name, cache=tmp_path)
    assert second.fingerprint == first.fingerprint
    second.release_encoders()
    assert torch.equal(score(second, rows), plain)
    assert second.encoders.calls == {"media": 0, "text": 0}
    assert not list(tmp_path.rglob("*.partial*"))


def test_one_picture_and_one_prompt_are_encoded_once(tmp_path: Path) -> None:
    found = adapter("stable_diffusion")
    one = sample("a cat", picture(0))
    score(found, [one, one, one])
    assert found.encoders.calls == {"media": 1, "text": 1}
    path = tmp_path / "same.png"
    path.write_bytes(one.response[0].content)
    cached = adapter("stable_diffusion", cache=tmp_path / "cache")
    score(cached, [one])
    score(cached, [sample("a cat", Media("image", path=str(path)))])
    assert cached.encoders.calls == {"media": 1, "text": 1}


def test_entries_of_other_weights_sizes_and_options_are_not_used(tmp_path: Path) -> None:
    rows = samples("sd3", 1)
    score(adapter("sd3", cache=tmp_path), rows)
    smaller = adapter("sd3", cache=tmp_path, resolution=16)
    score(smaller, rows)
    assert smaller.encoders.calls == {"media": 1, "text": 0}
    shorter = adapter("sd3", cache=tmp_path, text={"max_sequence_length": 8})
    score(shorter, rows)
    assert shorter.encoders.calls == {"media": 0, "text": 1}
    pipe = tiny("sd3")
    with torch.no_grad():
        next(pipe.vae.parameters()).add_(0.1)
        next(pipe.text_encoder_3.parameters()).add_(0.1)
    other = load_diffusion(pipe, **{**options("sd3"), "cache": tmp_path})
    score(other, rows)
    assert other.encoders.calls == {"media": 1, "text": 1}


def test_released_encoders_are_missed_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cache=FOLDER"):
        adapter("stable_diffusion").release_encoders()
    found = adapter("stable_diffusion", cache=tmp_path)
    found.release_encoders()
    rows = samples("stable_diffusion", 1)
    with pytest.raises(UserError, match="the VAE was released"):
        score(found, rows)
    drawn = found.sample([rows[0].prompt], [1], steps=1)
    assert drawn == adapter("stable_diffusion").sample([rows[0].prompt], [1], steps=1)
    assert found.encoders.released


def test_a_damaged_entry_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("abcd", {"mean": torch.ones(3)})
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(ValueError, match=f"{file.name} is damaged"):
        store.read("abcd")
    assert store.read("other") is None


def test_cached_media_are_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = adapter("stable_diffusion", cache=tmp_path)
    rows = samples("stable_diffusion", 2)
    size = found.size(rows)
    score(found, rows)
    again = adapter("stable_diffusion", cache=tmp_path)

    def opened(*args: object, **kwargs: object) -> None:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr("mmalign.adapters.diffusion.collate.pixels", opened)
    assert again.size(rows) == size
    score(again, rows)
