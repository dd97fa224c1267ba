"""The gallery of `mmalign inspect`, as a person uses it: opened from a disk in a real browser."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from data import made
from PIL import Image, ImageDraw

from mmalign.data import write_store
from mmalign.data.gallery import SMALLEST, side_for, thumbnail
from mmalign.data.inspect import inspect
from mmalign.records import Media, Preference, Provenance, Sample, Span, Text, pair
from mmalign.report.histograms import counts, histograms


def collage() -> Media:
    image = Image.new("RGB", (400, 200), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((60, 40, 160, 160), fill="firebrick")
    pen.rectangle((240, 40, 360, 160), fill="navy")
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return Media("image", encoded.getvalue())


def found_out() -> Preference:
    """A pair about which a builder noted all that the page can draw."""
    prompt = (made.user(collage(), "In Image2, what is there?"),)
    chosen = Text("A blue square stands on the right.", (Span(2, 6, 2.0),))
    details = {
        "boxes": [
            {"image": 0, "box": [0, 0, 200, 200], "label": "Image1"},
            {"image": 0, "box": [200, 0, 400, 200], "label": "Image2", "target": True},
        ],
        "heat": [{"image": 0, "rows": 1, "columns": 4, "values": [0.1, 0.7, 0.2, 0.0]}],
        "marks": {"1": [[2, 12, "hallucinated"]]},
        "rewards": [1.0, 0.25],
    }
    return pair(
        Sample(prompt, (chosen,)),
        Sample(prompt, (Text("A red circle stands on the left."),)),
        aux={"ratio": 0.2},
        source=Provenance("attention_filter", "1", ("p" * 32,), ("tiny",), 7, details),
    )


def many(count: int) -> list[Preference]:
    return [
        pair(
            Sample((made.user(f"Question {i}?"),), (Text("yes " * (i % 7 + 1)),)),
            Sample((made.user(f"Question {i}?"),), (Text("no"),)),
            aux={"score": i % 10},
            source=Provenance("even" if i % 2 == 0 else "odd"),
        )
        for i in range(count)
    ]


def test_histograms_count_every_value_once() -> None:
    assert counts([0, 0.1, 0.5, 1.0], 0, 1, 2) == [2, 2]
    drawn = histograms({"x": [1.0, 2.0, 2.0], "constant": [3.0, 3.0], "none": []})
    assert drawn.count("<figure>") == 1
    assert drawn.count("<rect") == 2


def test_thumbnails_keep_the_size_of_the_image_itself() -> None:
    small, size = thumbnail(collage(), 100)
    assert size == [400, 200]
    assert small.startswith("data:image/jpeg;base64,")
    assert side_for(10) > side_for(5000) > side_for(100_000) == SMALLEST


def test_what_others_said_of_the_same_pair_is_agreement(tmp_path: Path) -> None:
    first, second = made.chat(), made.chat("other?")
    against = pair(first.rejected, first.chosen)
    rows = [first, Preference(first.candidates, (2.0, 1.0)), against, second]
    found = inspect(str(write_store(rows, tmp_path / "store")))
    assert found["agreement"] == {
        "judged more than once": 1,
        "verdicts with the majority": pytest.approx(2 / 3),
    }


def test_rewards_and_quarantine_are_shown(tmp_path: Path) -> None:
    store = write_store([found_out()], tmp_path / "store")
    (store / "quarantine.jsonl").write_text('{"row": 3, "reason": "truncated"}\n' * 2)
    found = inspect(str(store))
    assert found["lengths"]["reward"]["max"] == 1.0
    assert found["quarantine"] == {"truncated": 2}


@pytest.mark.slow
def test_a_person_pages_sorts_and_filters_thousands(tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    rows = [found_out(), *many(3000)]
    inspect(str(write_store(rows, tmp_path / "store")), out=tmp_path / "out", show=5000)
    with chromium(tmp_path / "profile") as browser:
        browser.get((tmp_path / "out" / "index.html").as_uri())

        def cards() -> list[str]:
            script = "return [...document.querySelectorAll('article .head')].map(h => h.innerText)"
            shown: list[str] = browser.execute_script(script)
            return shown

        def place() -> str:
            return str(browser.find_element(By.ID, "place").text)

        def choose(name: str, value: Any) -> None:
            browser.execute_script(
                "const e = document.getElementById(arguments[0]);"
                "if (e.type === 'checkbox') e.checked = arguments[1]; else e.value = arguments[1];"
                "e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change'));",
                name,
                value,
            )

        assert place() == "1 to 20 of 3001"
        drawn = browser.find_elements(By.CSS_SELECTOR, "article .box")
        assert [box.get_attribute("class") for box in drawn] == ["box", "box target"]
        assert len(browser.find_elements(By.CSS_SELECTOR, "article .heat")) == 4
        assert browser.find_element(By.CSS_SELECTOR, ".marked").text == "red circle"
        assert browser.find_element(By.CSS_SELECTOR, ".weighted").text == "blue"
        choose("differences", True)
        differing = browser.find_elements(By.CSS_SELECTOR, "article:first-child .differs")
        # Neighbouring words that differ are one run where nothing else parts them.
        assert {word.text for word in differing} == {
            "blue", "square", "right.", "red", "circle", "left.",
        }  # fmt: skip
        browser.save_screenshot(str(tmp_path / "gallery.png"))
        browser.find_element(By.ID, "next").click()
        assert place() == "21 to 40 of 3001"
        choose("search", "question 2999?")
        assert place() == "1 to 1 of 1"
        choose("search", "")
        choose("source", "odd")
        assert place().endswith("of 1500")
        choose("number", "score")
        choose("least", "9")
        assert place().endswith("of 300")
        choose("sort", "chosen longer by")
        choose("descending", True)
        longest = "chosen longer by 26"
        assert all(longest in head for head in cards())
        assert not browser.get_log("browser")
