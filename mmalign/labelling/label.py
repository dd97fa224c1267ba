"""The command `mmalign label`: people compare candidates on a local page, votes become data."""

from __future__ import annotations

import json
import secrets
import webbrowser
from dataclasses import asdict, dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from mmalign.data.opening import open_dataset, parse_columns
from mmalign.data.store import write_store
from mmalign.errors import UserError
from mmalign.files import whole_file
from mmalign.labelling import export as exports
from mmalign.labelling.agreement import Agreement, agreement
from mmalign.labelling.comparisons import Comparison, comparisons_of
from mmalign.labelling.server import Desk, address, serve
from mmalign.labelling.votes import Votes

MERGES = {"each": exports.each_vote, "majority": exports.majority}


def label(
    dataset: str,
    *,
    out: Path = Path("runs/label"),
    export: Path | None = None,
    merge: Literal["each", "majority"] = "each",
    port: int = 0,
    browser: bool = True,
    format: str | None = None,  # noqa: A002  # what users type
    split: str | None = None,
    columns: list[str] | None = None,
) -> dict[str, Any]:
    """Let people compare the candidates of a dataset on a local page.

    Each record with two or more candidates, texts, images or videos, is shown with its candidates
    in a random order that tells nothing; keys choose the better one, rank several, tie or skip.
    Every vote is on the disk before the next comparison appears. Several annotators may take part,
    at once or later. The page is for this machine only: to annotate from another one, forward the
    port with ssh. Ctrl-C ends it and prints how far the annotators agree.

    Args:
        dataset: A folder, a file, a glob, or the name of a dataset on the Hugging Face Hub.
        out: Folder for votes.sqlite and agreement.json.
        export: Write the votes so far as a dataset of preferences into this folder, and end.
        merge: What an exported preference is: each vote by itself, or the majority's result.
        port: Port of the page; 0 takes a free one.
        browser: Open the page in the browser.
        format: Format of the dataset. Default: recognised by its columns.
        split: Split of the dataset. Default: the only one, or "train".
        columns: Names of columns that differ from the format's, as chosen=better.

    Returns:
        The agreement, as in agreement.json.

    Examples:
        mmalign label ./pairs --out runs/label
        mmalign label ./pairs --out runs/label --export ./votes --merge majority
    """
    console = Console(markup=False, emoji=False, highlight=False)
    opened = open_dataset(dataset, split=split, columns=parse_columns(columns), format=format)
    comparisons, refused = comparisons_of(opened.checked())
    if refused:
        console.print(f"{len(refused)} records cannot be compared; the first: {refused[0]}")
    if not comparisons:
        raise UserError(
            f"{dataset} holds nothing to compare",
            hint="it should hold preferences with two or more different candidates each",
        )
    votes = Votes(out / "votes.sqlite")
    if export is None:
        _collect(comparisons, votes, port, browser, console)
    else:
        if not votes.counting():
            raise UserError(f"{votes.path} holds no votes yet", hint="run it without --export")
        write_store(MERGES[merge](comparisons, votes.counting()), export)
        console.print(f"Votes written to {export}")
    found = agreement(votes.counting())
    with whole_file(out / "agreement.json") as partial:
        partial.write_text(json.dumps(asdict(found), indent=1) + "\n")
    console.print(in_words(found))
    votes.close()
    return asdict(found)


def in_words(found: Agreement) -> str:
    """The agreement as one or two lines."""
    people = ", ".join(f"{name} {count}" for name, count in found.annotators.items())
    if not found.annotators:
        return "No votes yet."
    if not found.units:
        return f"Votes: {people}. No two annotators have judged the same candidates yet."
    return (
        f"Votes: {people}. Of {found.units} pairs judged by at least two annotators, they agree in "
        f"{found.share:.0%}; Krippendorff's alpha is {found.alpha:.2f}."
    )


@dataclass
class _Address:
    """Where the page was served last time. A page that was open when the command was stopped or
    killed finds it again at the same address, and hands in the vote that it still holds."""

    path: Path
    token: str
    port: int

    @classmethod
    def of(cls, path: Path) -> _Address:
        if path.exists():
            return cls(path, **json.loads(path.read_text()))
        return cls(path, secrets.token_urlsafe(16), 0)

    def save(self, port: int) -> None:
        with whole_file(self.path) as partial:
            partial.touch(mode=0o600)  # the token is for the person who started the command
            partial.write_text(json.dumps({"token": self.token, "port": port}))


def _listening(desk: Desk, port: int, last: int) -> ThreadingHTTPServer:
    """A server at `port`; for 0, at the port of last time if that is free, else at any."""
    try:
        return serve(desk, port=port or last)
    except OSError as error:
        if port:
            raise UserError(
                f"port {port} cannot be used: {error.strerror}", hint="choose another --port, or 0"
            ) from error
    return serve(desk)


def _collect(
    comparisons: list[Comparison], votes: Votes, port: int, browser: bool, console: Console
) -> None:
    """Serve the page until Ctrl-C."""
    kept = _Address.of(votes.path.with_name("address.json"))
    desk = Desk(comparisons, votes, token=kept.token)
    server = _listening(desk, port, kept.port)
    kept.save(server.server_address[1])
    page = address(server, desk)
    console.print(f"{len(comparisons)} comparisons. Open {page}\nCtrl-C ends.", soft_wrap=True)
    if browser:
        webbrowser.open(page)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        console.print("")
    finally:
        server.server_close()
