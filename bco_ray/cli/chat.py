"""`bco chat` on a terminal or from a pipe: lines in, answers on stdout, everything else on stderr."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from bco_ray.cli.conversation import Answer, Conversation, NoServerError, Server, choose
from bco_ray.errors import ServingError
from bco_ray.storage.registry import Registry
from bco_ray.telemetry import console

HELP = """\
+   -                   thumbs-up, thumbs-down on the last answer
/up   /down [COMMENT]   the same, with a comment
/undo                   take that vote back
/retry                  another answer to the same question
/reset                  forget the conversation
/model [REF]            which models there are; talk to another one
/quit                   leave, as Ctrl-D does; Ctrl-C stops an answer, or leaves at the prompt"""


def run_chat(url: str, model: str, system: str, sampling: dict[str, Any], storage: Path) -> None:
    """Until /quit or the end of the input. Raises ServingError if no server answers or it does not have the model."""
    server = Server(url, os.environ.get("BCO_API_KEY", ""), os.environ.get("USER") or "terminal")
    try:
        model = model or choose(server.names())
        server.check(model)
    except NoServerError as error:
        way_out = f"Start one in another terminal with: {_serve_command(model, storage)}; or name yours with --url."
        raise ServingError(f"{error} {way_out}") from None
    _note(f"{model} on {server.url}. /help says what else you can type.")
    Chat(Conversation(server, model, system, sampling)).run(_lines())


class Chat:
    """A line is a question, a vote or a command."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._commands: dict[str, Callable[[str], None]] = {
            "+": lambda _: self._vote(True),
            "-": lambda _: self._vote(False),
            "/up": lambda comment: self._vote(True, comment),
            "/down": lambda comment: self._vote(False, comment),
            "/undo": self._undo,
            "/retry": lambda _: self._show(self._conversation.retry),
            "/reset": self._reset,
            "/model": self._model,
            "/help": lambda _: _note(HELP),
        }

    def run(self, lines: Iterator[str]) -> None:
        """What goes wrong is told, and the next line read; from a pipe nobody would see it, and it ends the command."""
        for line in lines:
            if line == "/quit":
                return
            try:
                self._act(line)
            except ServingError as error:
                if not sys.stdin.isatty():
                    raise
                _note(str(error), "red")

    def _act(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if (command := self._commands.get(word)) and (word.startswith("/") or not rest):
            command(rest.strip())
        elif word.startswith("/"):
            raise ServingError(f"{word}: no such command; /help lists them.")
        elif line:
            self._show(lambda show: self._conversation.ask(line, show))

    def _show(self, answering: Callable[[Callable[[str], None]], Answer]) -> None:
        came = False

        def show(piece: str) -> None:
            nonlocal came
            came = True
            _say(visible(piece))

        try:
            answer = answering(show)
        except ServingError:
            if came:
                _say("\n")
            raise
        _say("\n")
        _note(answer.model if answer.whole else "stopped")

    def _vote(self, label: bool, comment: str = "") -> None:
        self._conversation.vote(label, comment)
        _note(f"thumbs-{'up' if label else 'down'} noted; /undo takes it back")

    def _undo(self, _: str) -> None:
        self._conversation.undo()
        _note("vote taken back")

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        _note("a new conversation")

    def _model(self, name: str) -> None:
        server = self._conversation.server
        if name:
            server.check(name)
            self._conversation.model = name
        else:
            _note(f"served: {', '.join(server.names())}")
        _note(f"talking to {self._conversation.model}")


def visible(text: str) -> str:
    """A model's words without anything that steers a terminal."""
    return "".join("·" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)


def _lines() -> Iterator[str]:
    """Stripped; ends with the input, or with Ctrl-C where nothing else is going on."""
    with suppress(ImportError):
        import readline  # noqa: F401 - gives `input` its editing and history
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return
        yield line.strip()


def _serve_command(model: str, storage: Path) -> str:
    """What would serve this model, if it is one of this machine."""
    name = model.partition("@")[0].partition("/")[0]
    if not model or not (Path(model).is_dir() or Registry(storage).versions(name)):
        return "bco serve"
    return f"bco serve {model}" + (f" --storage {storage}" if storage != Path("runs") else "")


def _say(text: str) -> None:
    """At once. Not through rich, which says it again after a Ctrl-C in the middle."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _note(text: str, style: str = "dim") -> None:
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
