"""The command line: `mmalign COMMAND`. A command is a typed function; this file finds and calls it.

Flags, their types and defaults come from the function's signature, help from its docstring. This
file imports no torch, and a command's module only when that command is asked for.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import re
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, get_type_hints

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.config import Dict

from mmalign import __version__, environment
from mmalign.errors import UserError
from mmalign.settings import arguments, options, read_settings

Command = tuple[str, str]
"""Where a function lies ("module:name"), and one line of help."""

COMMANDS: dict[str, Command] = {
    "quickstart": (
        "mmalign.pipelines.quickstart:quickstart",
        "Align a small model here and now, without a network, and see what changed.",
    ),
    "align-text": (
        "mmalign.pipelines.align_text:align_text",
        "Align a language model to preferences.",
    ),
    "align-vlm": (
        "mmalign.pipelines.align_vlm:align_vlm",
        "Align a vision-language model to preferences, for example against hallucination.",
    ),
    "align-diffusion": (
        "mmalign.pipelines.align_diffusion:align_diffusion",
        "Align a text-to-image model to preferences.",
    ),
    "align-video": (
        "mmalign.pipelines.align_video:align_video",
        "Align a text-to-video model to preferences.",
    ),
    "align-image-tokens": (
        "mmalign.pipelines.align_image_tokens:align_image_tokens",
        "Align a model that draws token by token to preferences.",
    ),
    "inspect": (
        "mmalign.data.inspect:inspect",
        "Show what is in a dataset of preferences.",
    ),
    "convert": (
        "mmalign.data.convert:convert",
        "Turn a dataset from one format into another.",
    ),
    "label": (
        "mmalign.labelling.label:label",
        "Give preferences by hand, on a local page.",
    ),
    "objectives": (
        "mmalign.objectives.listing:objectives",
        "List the objectives: name, formula, paper and what each needs.",
    ),
}

BUILDERS: dict[str, Command] = {
    "attention-filter": (
        "mmalign.data_builders.attention_filter:command",
        "Reject a model's answers about one image among several that looked at the others.",
    ),
    "bdhs": (
        "mmalign.data_builders.bdhs:command",
        "Prefer good answers to what the model writes when it hardly sees the image.",
    ),
    "collage": (
        "mmalign.data_builders.collage:command",
        "Ask about one image among several: in a sequence, a grid, or one inside another.",
    ),
    "corrupt": (
        "mmalign.data_builders.corrupt:command",
        "Plant faults into true answers, and show images they are not about.",
    ),
    "critical-tokens": (
        "mmalign.data_builders.critical_tokens:command",
        "Weigh the tokens that made rejected answers wrong, by contrast of two models.",
    ),
    "difficulty": (
        "mmalign.data_builders.difficulty:command",
        "Note how easily models that were not aligned tell pairs about images apart.",
    ),
    "edit-pairs": (
        "mmalign.data_builders.edit_pairs:command",
        "Let an expert change a few words of a text, for the worse or for the better.",
    ),
    "expert-correction": (
        "mmalign.data_builders.expert_correction:command",
        "Let an expert correct a model's own answers, and prefer what it made of them.",
    ),
    "fifa": (
        "mmalign.data_builders.fifa:command",
        "Keep the few pairs with a clear margin, a good prompt, and prompts unlike one another.",
    ),
    "human-votes": (
        "mmalign.data_builders.human_votes:command",
        "Bring several people's votes on the same candidates to one preference.",
    ),
    "mix": (
        "mmalign.data_builders.mix:command",
        "Mix datasets: proportions, no duplicates, no evaluation data, a split by image.",
    ),
    "noisy-answers": (
        "mmalign.data_builders.noisy_answers:command",
        "Prefer good answers to what the model says under a noisy image.",
    ),
    "reward-pairs": (
        "mmalign.data_builders.reward_pairs:command",
        "Sample several responses per prompt, and prefer those with the better reward.",
    ),
}
SUITES: dict[str, Command] = {
    "chair": (
        "mmalign.evaluation.suites.chair:chair",
        "CHAIR: which share of the objects that descriptions mention is not there.",
    ),
    "object-hal": (
        "mmalign.evaluation.suites.object_hal:object_hal",
        "Object-HalBench: different objects that descriptions name and that are not there.",
    ),
    "pope": (
        "mmalign.evaluation.suites.pope:pope",
        "POPE: whether an object is in an image, asked of objects that are and that are not.",
    ),
    "amber": (
        "mmalign.evaluation.suites.amber:amber",
        "AMBER: nouns that descriptions name in error, and questions whose answer is known.",
    ),
    "mmhal": (
        "mmalign.evaluation.suites.mmhal:mmhal",
        "MMHal-Bench: a judge rates answers to open questions from 0 to 6; below 3 hallucinates.",
    ),
    "ranking": (
        "mmalign.evaluation.suites.ranking:ranking",
        "Ranking accuracy: how many pairs a model's likelihoods put in order, and could.",
    ),
    "likelihood": (
        "mmalign.evaluation.suites.likelihood:likelihood",
        "Likelihood displacement: how chosen and rejected responses moved, each by itself.",
    ),
    "image-ablation": (
        "mmalign.evaluation.suites.image_ablation:image_ablation",
        "Accuracy on pairs about images, with the images and without them.",
    ),
    "overoptimisation": (
        "mmalign.evaluation.suites.overoptimisation:overoptimisation",
        "Entropy, mass, divergence and length of a model's own answers over its checkpoints.",
    ),
    "subnetworks": (
        "mmalign.evaluation.suites.subnetworks:subnetworks",
        "Which share of the weights training moved, where, and whether two runs moved the same.",
    ),
    "data-faults": (
        "mmalign.evaluation.suites.data_faults:data_faults",
        "Ties, repeats, contradictions and length bias of a dataset of preferences.",
    ),
    "hallusion-bench": (
        "mmalign.evaluation.suites.hallusion_bench:hallusion_bench",
        "HallusionBench: the same questions over figures as they were, changed, and left out.",
    ),
    "win-rate": (
        "mmalign.evaluation.suites.win_rate:win_rate",
        "How often the images of a model are preferred to those of its baseline.",
    ),
    "image-scores": (
        "mmalign.evaluation.suites.image_scores:image_scores",
        "What rewards, CLIPScore among them, think of the images that a model draws.",
    ),
    "geneval": (
        "mmalign.evaluation.suites.geneval:geneval",
        "GenEval: whether images show the objects, counts, colours and places asked for.",
    ),
    "preference-accuracy": (
        "mmalign.evaluation.suites.preference_accuracy:preference_accuracy",
        "How often a model's implicit reward orders pairs as people did.",
    ),
}

GROUPS: dict[str, tuple[dict[str, Command], str]] = {
    "build": (BUILDERS, "Build preferences with one of the builders."),
    "evaluate": (SUITES, "Score a model with one of the suites."),
}
"""Commands with commands of their own: `mmalign build BUILDER`. Hidden while the table is empty."""

DEBUG = "MMALIGN_DEBUG"
USER, UNEXPECTED, INTERRUPTED = 2, 1, 130  # exit codes


def main(tokens: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    environment.prepare()
    given = list(sys.argv[1:] if tokens is None else tokens)
    debug = "--debug" in given or os.environ.get(DEBUG, "0") not in ("", "0")
    try:
        run(given)
        part()
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("\nstopped", "the same command, run again, goes on from what was saved.")
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        return report(error, debug)
    return 0


def part() -> None:
    """Let processes that worked together end apart: threads that still talk to others when the
    interpreter ends abort it."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def run(tokens: Sequence[str]) -> Any:
    """Find the command that the first tokens name, give it the rest, and return its result."""
    app = App(
        name="mmalign",
        help="Align models to preferences, and see what changed.\n\n"
        "`mmalign COMMAND --help` says what can be set.",
        version=__version__,
        help_format="markdown",
        group_parameters=Group("Options", sort_key=90),
        help_flags=["--help", "-h"],
        default_parameter=Parameter(consume_multiple=True, negative_iterable=()),
        suppress_keyboard_interrupt=False,
    )
    quiet: dict[str, Any] = {
        "exit_on_error": False,
        "print_error": False,
        "result_action": "return_value",
    }
    path = register(app, tokens)

    @app.meta.default
    def session(
        *rest: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        config: Annotated[Path | None, Parameter(help="YAML file of settings; flags win.")] = None,
        debug: Annotated[
            bool, Parameter(help="Show tracebacks.", negative=(), show_default=False)
        ] = False,
    ) -> Any:
        if config is not None:
            settings: dict[str, Any] = read_settings(config)
            for name in reversed(path):
                settings = {name: settings}
            app.config = (Dict(settings, source=str(config)),)
        return app(rest, **quiet)

    app.meta.suppress_keyboard_interrupt = False
    return app.meta(list(tokens), **quiet)


def register(app: App, tokens: Sequence[str]) -> list[str]:
    """Tell `app` all commands, and load the one that is asked for. Returns that one's path."""
    before = ["", *tokens]
    words = [
        token
        for token, previous in zip(tokens, before, strict=False)
        if not token.startswith("-") and previous != "--config"
    ]
    tables: list[tuple[App, dict[str, Command], list[str]]] = [(app, COMMANDS, [])]
    for order, (name, (table, summary)) in enumerate(GROUPS.items()):
        if table:
            group = App(name=name, help=summary, sort_key=100 + order)
            app.command(group)
            tables.append((group, table, [name]))
    path: list[str] = []
    for parent, table, above in tables:
        for order, (name, (target, summary)) in enumerate(table.items()):
            if words[: len(above) + 1] == [*above, name]:
                path = [*above, name]
                parent.command(load(target, name, order))
            else:
                parent.command(App(name=name, help=summary, sort_key=order))
    return path


def load(target: str, name: str, order: int) -> App:
    """Import the function behind a command and make the command."""
    module, attribute = target.split(":")
    function = getattr(importlib.import_module(module), attribute)
    text = Docstring(function)
    examples = f"**Examples**\n\n{text.examples}" if text.examples else None
    command = App(name=name, help=text.introduction, help_epilogue=examples, sort_key=order)
    command.default(flattened(function, text))
    return command


class Docstring:
    """The parts of a Google-style docstring.

    A section whose entries are parameters is a panel of the command's help: `Args:`, or any other
    title, such as `Model:` or `Output:`, for a function with many parameters.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        document = inspect.getdoc(function) or ""
        introduction, *parts = re.split(r"^([A-Z][\w ]*):\n(?= +\S)", document, flags=re.MULTILINE)
        self.introduction = introduction.strip()
        self.sections = {
            title: textwrap.dedent(body).strip("\n")
            for title, body in zip(parts[::2], parts[1::2], strict=True)
        }

    @property
    def examples(self) -> str:
        """The commands of the Examples section, as a Markdown block."""
        text = self.sections.get("Examples", "")
        return f"```shell\n{text}\n```" if text else ""

    def entries(self) -> dict[str, tuple[str, str]]:
        """For each parameter that a section explains, its panel and the explanation."""
        return {
            name: ("Parameters" if title == "Args" else title, " ".join(text.split()))
            for title, body in self.sections.items()
            for name, text in re.findall(
                r"^(\w+)(?: \([^)]*\))?: (.*(?:\n[ \n].*)*)", body, flags=re.MULTILINE
            )
        }


def flattened(function: Callable[..., Any], text: Docstring) -> Callable[..., Any]:
    """`function` as the command line sees it: every option by itself, with its help and panel."""
    entries = text.entries()
    panels: dict[str, Group] = {}  # in the order of the docstring

    def panel(title: str) -> Group:
        return panels.setdefault(title, Group(title, sort_key=len(panels) + 1))

    for title, _ in entries.values():
        panel(title)
    parameters = []
    hints = get_type_hints(function)
    for option in options(function):
        title, words = entries.get(option.name, ("Parameters", ""))
        if option.group:
            title = option.group.replace("_", " ").capitalize()
            _, words = Docstring(hints[option.group]).entries().get(option.name, ("", ""))
        extra = Parameter(
            help=words,
            group=panel(title),
            show_default=shown(option.default),
            # A switch that is off needs no opposite; `--switch=false` overrules a file.
            negative=() if option.default is False else None,
        )
        kind = inspect.Parameter
        parameters.append(
            kind(
                option.name,
                kind.POSITIONAL_OR_KEYWORD if option.positional else kind.KEYWORD_ONLY,
                default=option.default,
                annotation=Annotated[option.hint, extra],
            )
        )

    @functools.wraps(function)
    def command(*positional: Any, **named: Any) -> Any:
        bound = signature.bind(*positional, **named)
        return function(**arguments(function, bound.arguments))

    signature = inspect.Signature(parameters)
    command.__signature__ = signature  # type: ignore[attr-defined]  # inspect reads it
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__doc__ = text.introduction
    return command


def shown(default: Any) -> bool | Callable[[Any], str]:
    """How help shows a default: several values as one would type them, nothing for none or off."""
    if isinstance(default, list | tuple):
        return (lambda values: " ".join(map(str, values))) if default else False
    return default is not None and default is not False


def report(error: Exception, debug: bool) -> int:
    """Tell the user what went wrong, and return the exit code that goes with it."""
    if isinstance(error, CycloptsError):
        error.verbose = False
        say("error", str(error), "`--help` after the command lists what can be set")
        return USER
    if isinstance(error, UserError):
        say("error", error.message, error.hint)
        return USER
    if isinstance(error, OSError) or (isinstance(error, ValueError) and raised_here(error)):
        ours = type(error).__module__.startswith("mmalign.")  # its name and words are chosen
        clear = debug or ours or isinstance(error, FileNotFoundError | PermissionError)
        say("error", describe(error), "" if clear else "`--debug` shows where this came up")
        return USER
    say("error", f"{type(error).__name__}: {error}", advice(error, debug))
    return UNEXPECTED


def advice(error: Exception, debug: bool) -> str:
    """Where the traceback of an unexpected error is. The run may have been long, so it is kept."""
    if debug:
        return "this should not happen: please report it with the traceback above"
    text = "".join(traceback.format_exception(error))
    with tempfile.NamedTemporaryFile(
        "w", prefix="mmalign-traceback-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
    return (
        f"this should not happen: please report it to mmalign's issue tracker with {file.name}, "
        "the traceback (`--debug` shows it here)"
    )


def describe(error: Exception) -> str:
    """An error in words: what the operating system says comes without its number."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror.lower()}"
    return str(error)


def raised_here(error: Exception) -> bool:
    """Whether mmalign itself raised this: its own ValueErrors are about what it was given."""
    last: TracebackType | None = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and last.tb_frame.f_globals["__name__"].split(".")[0] == "mmalign"


def say(head: str, message: str, hint: str = "") -> None:
    """Print a message to stderr, in colour on a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble((f"{head}: ", "bold red" if head == "error" else "bold"), message))
    if hint:
        console.print(Text.assemble(("hint: ", "bold cyan"), hint))


if __name__ == "__main__":
    sys.exit(main())
