"""The formats of preference data that mmalign reads, and how one is recognised by its columns.

A new format is one small file with a function from a row to a preference, and one line in FORMATS.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from mmalign.data import generation, layout, trl, vision
from mmalign.data.errors import DatasetError
from mmalign.data.fields import Row
from mmalign.records import Message, Preference

Read = Callable[[Row, Path | None], Preference]
ReadPrompt = Callable[[Row, Path | None], tuple[Message, ...]]


@dataclass(frozen=True)
class Format:
    """How one format is recognised and read.

    about: what it is, in a few words. needs: sets of columns, any one of which is enough.
    read: a row, and where its relative paths start, to a preference; raises FieldError.
    read_prompt: the prompt alone; needed only where a row may have no responses.
    media: columns that may hold images or videos.
    per_row: how many preferences a row holds; `read` finds in row[PART] which one is meant.
    group_by: rows with equal values in this column are one preference; `read` gets lists of values.
    by_name: whether it is taken only where it is asked for: another format has its columns.
    """

    about: str
    needs: tuple[tuple[str, ...], ...]
    read: Read
    read_prompt: ReadPrompt | None = None
    media: tuple[str, ...] = ("images", "image", "videos")
    per_row: int = 1
    group_by: str | None = None
    by_name: bool = False

    def prompt(self, row: Row, root: Path | None) -> tuple[Message, ...]:
        """The prompt of a row. Raises FieldError."""
        if self.read_prompt is not None:
            return self.read_prompt(row, root)
        return self.read(row, root).chosen.prompt


FORMATS: dict[str, Format] = {
    "mmalign": Format("our own", (("prompt", "grades", "aux", "source"),), layout.decode),
    "trl": Format(
        "pairs or thumbs for TRL",
        (("chosen", "rejected"), ("prompt", "completion", "label")),
        trl.read,
        trl.read_prompt,
    ),
    "rlhf-v": Format(
        "RLHF-V: corrections by people",
        (("ds_name", "image", "text"),),
        vision.rlhf_v,
    ),
    "rlaif-v": Format(
        "RLAIF-V, SPA-VL, MMPR: a question about an image",
        (("image", "question", "chosen", "rejected"),),
        vision.question,
    ),
    "vlfeedback": Format(
        "VLFeedback: rated answers of several models",
        (("prompt", "completions", "models"),),
        vision.vlfeedback,
        media=("image", "img_path"),
    ),
    "povid": Format(
        "POVID: two conversations",
        (("conversations", "rejected_conversations"),),
        vision.povid,
    ),
    "mia-dpo": Format(
        "MIA-DPO: several images",
        (("image", "prompt", "chosen", "rejected", "gt"),),
        vision.placed,
    ),
    "mm-rlhf": Format(
        "MM-RLHF: a prompt with an image or a video",
        (("image", "prompt", "chosen", "rejected"), ("video", "prompt", "chosen", "rejected")),
        vision.placed,
        media=("image", "video"),
    ),
    "mm-rlhf-ranked": Format(
        "MM-RLHF: rated answers of several models",
        (("question", "models_output", "final_ranking"),),
        vision.mm_rlhf_ranked,
        media=("image", "video"),
    ),
    "ic-vco": Format(
        "IC-VCO: two images and an answer to each",
        (("images", "prompt", "chosen", "rejected", *vision.IC_VCO_SPANS),),
        vision.ic_vco,
    ),
    "mdpo": Format(
        "mDPO: rendered prompts",
        (("img_path", "prompt", "chosen", "rejected"),),
        vision.mdpo,
        media=("img_path",),
    ),
    "opa-dpo": Format(
        "OPA-DPO: on-policy corrections",
        (("queries", "original_generate_response", *vision.OPA_PAIRS),),
        vision.opa_dpo,
        media=("image_bytes",),
        per_row=2,
    ),
    "opa-dpo-four": Format(
        "OPA-DPO: four candidates, for objective opa_dpo",
        (("queries", "original_generate_response", *vision.OPA_PAIRS, "AI_json_report"),),
        vision.opa_dpo_four,
        media=("image_bytes",),
        by_name=True,
    ),
    "llava-rlhf": Format(
        "LLaVA-RLHF: the better of two answers",
        (("conversations", "output_1", "output_2", "preference"),),
        vision.llava_rlhf,
    ),
    "symmpo": Format(
        "SymMPO: pairs of images",
        (("question", "image_1", "image_2", "resp_1_w", "resp_1_l", "resp_2_w", "resp_2_l"),),
        vision.symmpo,
        media=("image_1", "image_2"),
        per_row=2,
    ),
    "llama-factory": Format(
        "LLaMA-Factory's ranking data",
        (("conversations", "chosen", "rejected"),),
        vision.llama_factory,
    ),
    "ms-swift": Format(
        "ms-swift's preferences",
        (("messages", "rejected_response"), ("messages", "rejected_images")),
        vision.ms_swift,
        media=("images", "rejected_images"),
    ),
    "pick-a-pic": Format(
        "Pick-a-Pic: two images and who was picked",
        (("caption", "jpg_0", "jpg_1", "label_0", "label_1"),),
        generation.pick_a_pic,
        media=("jpg_0", "jpg_1"),
    ),
    "hpd-v2": Format(
        "HPD v2, training: two images",
        (("prompt", "file_path", "human_preference"),),
        generation.hpd_v2,
        media=("file_path",),
    ),
    "hpd-v2-test": Format(
        "HPD v2, test: ranked images",
        (("prompt", "image_path", "rank", "raw_annotations"),),
        generation.hpd_v2_ranked,
        media=("image_path",),
    ),
    "hpd-v3": Format(
        "HPD v3: the better image first",
        (("prompt", "path1", "path2"),),
        generation.hpd_v3,
        media=("path1", "path2"),
    ),
    "image-reward": Format(
        "ImageReward: ranked images",
        (("prompt", "generations", "ranking"),),
        generation.image_reward,
        media=("generations",),
    ),
    "image-reward-db": Format(
        "ImageRewardDB: one row an image",
        (("prompt", "prompt_id", "image", "rank"), ("prompt", "prompt_id", "image_path", "rank")),
        generation.image_reward_db,
        media=("image", "image_path"),
        group_by="prompt_id",
    ),
    "rich-hf": Format(
        "RichHF: one rated image a row, a thumb up or down",
        (("prompt", "image", *generation.RICH_SCORES),),
        generation.rich_hf,
        media=("image",),
    ),
    "rich-hf-ranked": Format(
        "RichHF: the images of a prompt, ranked",
        (("prompt", "image", *generation.RICH_SCORES),),
        generation.rich_hf_ranked,
        media=("image",),
        group_by="prompt",
        by_name=True,
    ),
    "video-feedback": Format(
        "VideoFeedback: one row a rated video",
        (("text prompt", "video link", *generation.VIDEO_RATINGS),),
        generation.video_feedback,
        media=("video link",),
        group_by="text prompt",
    ),
    "video-dpo": Format(
        "VideoDPO: the better video first",
        (("frame_caption", "video1", "video2"),),
        generation.video_dpo,
        media=("video1", "video2"),
    ),
    "video-align": Format(
        "VideoAlign, VideoGen-RewardBench: verdicts on two videos",
        (("prompt", "path_A", "path_B", *generation.VIDEO_VERDICTS),),
        generation.video_align,
        media=("path_A", "path_B"),
    ),
    "votes": Format(
        "votes about two files",
        (
            ("prompt", "image_a", "image_b", "winner"),
            ("prompt", "video_a", "video_b", "winner"),
        ),
        generation.votes,
        media=("image_a", "image_b", "video_a", "video_b"),
    ),
    "chosen-media": Format(
        "a better and a worse file",
        (
            ("prompt", "chosen_image", "rejected_image"),
            ("prompt", "chosen_video", "rejected_video"),
        ),
        generation.chosen_media,
        media=("chosen_image", "rejected_image", "chosen_video", "rejected_video"),
    ),
    "scored": Format(
        "files with scores",
        (("prompt", "image", "score"), ("prompt", "video", "score")),
        generation.scored,
        media=("image", "video"),
        group_by="prompt",
    ),
}

SYNONYMS: dict[str, tuple[str, ...]] = {
    "prompt": ("question", "instruction", "input", "query", "context", "caption", "problem"),
    "chosen": ("better", "preferred", "winner", "win", "good", "accepted", "positive", "pos"),
    "rejected": ("worse", "dispreferred", "loser", "lose", "bad", "refused", "negative", "neg"),
    "completion": ("response", "answer", "output", "generation", "text"),
    "label": ("rating", "thumb", "feedback", "liked", "preference"),
}
"""Other names that people give these columns, for hints."""


def recognise(
    columns: Collection[str], where: str, *, only: str | None = None, prompts: bool = False
) -> str:
    """The name of the format that a dataset with these columns has.

    only: take this one, and only check its columns. prompts: a prompt alone is enough.
    Raises DatasetError that lists what was found, what is known, and what was probably meant.
    """
    if only is not None and only not in FORMATS:
        close = get_close_matches(only, FORMATS, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DatasetError(
            f"no format is named {only!r}", hint=f"{hint}known: {', '.join(FORMATS)}."
        )
    known = {name: each for name, each in FORMATS.items() if not each.by_name}
    if only is not None:
        known = {only: FORMATS[only]}
    fits = {name: _fit(known[name], columns, prompts) for name in known}
    best = max(fits.values())
    names = [name for name, fit in fits.items() if fit == best]
    if best == 0:
        raise _unrecognised(columns, where, known)
    if len(names) > 1:
        raise DatasetError(
            f"{where}: the columns {_listed(columns)} fit several formats: {', '.join(names)}",
            hint="say which with format=...",
        )
    return names[0]


def renamed(row: Row, names: Mapping[str, str | None]) -> Row:
    """The row with columns under our names: {ours: theirs}; {ours: None} leaves a column out.

    Raises KeyError for a column that the row does not have.
    """
    taken = set(names) | {theirs for theirs in names.values() if theirs is not None}
    moved = {ours: row[theirs] for ours, theirs in names.items() if theirs is not None}
    return {name: value for name, value in row.items() if name not in taken} | moved


def renamed_columns(
    columns: Collection[str], names: Mapping[str, str | None], where: str
) -> tuple[str, ...]:
    """What `renamed` makes of the columns. Raises DatasetError for names that are not there."""
    for ours, theirs in names.items():
        if (theirs or ours) not in columns:
            wanted = theirs or ours
            close = get_close_matches(wanted, columns, 1)
            hint = f"did you mean {close[0]!r}?" if close else ""
            raise DatasetError(
                f"{where} has no column {wanted!r}; it has {_listed(columns)}", hint=hint
            )
    return tuple(renamed(dict.fromkeys(columns), names))


def _fit(known: Format, columns: Collection[str], prompts: bool) -> int:
    """How many columns a format explains; 0 if it does not fit."""
    sizes = [len(needs) for needs in known.needs if set(needs) <= set(columns)]
    if prompts and known.read_prompt is not None and "prompt" in columns:
        sizes.append(1)
    return max(sizes, default=0)


def _unrecognised(
    columns: Collection[str], where: str, known: Mapping[str, Format]
) -> DatasetError:
    lines = [f"{where} is in no known format", f"  columns found: {_listed(columns)}"]
    guesses: list[dict[str, str]] = []
    for name, entry in known.items():
        for needs in entry.needs:
            missing = [column for column in needs if column not in columns]
            lines.append(
                f"  {name} ({entry.about}) needs {', '.join(needs)}: no {', '.join(missing)}"
            )
            guess = {column: _meant(column, columns) for column in missing}
            if all(guess.values()):
                guesses.append({ours: theirs for ours, theirs in guess.items() if theirs})
    if guesses:
        hint = f"did you mean columns={min(guesses, key=len)}?"
    elif "prompt" in columns:
        hint = "prompts without responses are opened by open_prompts, for methods that sample."
    else:
        hint = "say which column is which with columns={'chosen': ..., 'rejected': ...}."
    return DatasetError("\n".join(lines), hint=hint)


def _meant(column: str, columns: Collection[str]) -> str | None:
    """The column that was probably meant: a synonym, or a similar name."""
    lower = {name.lower(): name for name in columns if name not in SYNONYMS}
    for word in (column, *SYNONYMS.get(column, ())):
        if word in lower:
            return lower[word]
        for name in lower:
            if word in name.split("_") or word in name.split("-"):
                return lower[name]
    close = get_close_matches(column, lower, 1, cutoff=0.7)
    return lower[close[0]] if close else None


def _listed(columns: Collection[str]) -> str:
    return ", ".join(columns) if columns else "none"
