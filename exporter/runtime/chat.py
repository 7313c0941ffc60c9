"""`--chat`: a conversation on the terminal, with one model that stays loaded.

Answers go to stdout, everything else to stderr.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass

from .conversation import Conversation
from .engine import Engine, View
from .errors import UserError
from .prompts import check
from .settings import Settings
from .settings_text import change, show

HELP = """\
/set NAME=VALUE …  change how is decoded, such as /set threshold=0.8 steps=none
/settings          show it
/reset             forget the conversation
/help              show this
/exit              leave, as Ctrl-D does; Ctrl-C interrupts an answer"""


@dataclass
class Chat:
    """The loop and what it changes."""

    engine: Engine
    conversation: Conversation
    settings: Settings
    view: View
    shows_text: bool  # the view prints the answer itself
    stats: bool

    def run(self) -> None:
        """Read and answer until the input ends. What goes wrong is said and does not end it."""
        with suppress(ImportError):  # gives input() its history; Windows has none
            import readline  # noqa: F401
        self.engine.open(self.settings)
        _say(f"{self.engine.bundle.model.name}: type, or /help; Ctrl-D leaves")
        if not self.conversation.templated:
            _say("no chat template: each turn stands on its own")
        while (line := _read()) is not None and line != "/exit":
            try:
                if line.startswith("/"):
                    self._command(*line[1:].partition(" ")[::2])
                elif line:
                    self._answer(line)
            except KeyboardInterrupt:
                _say("\n(interrupted: this turn is forgotten)")
            except UserError as error:
                _say(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""))

    def _command(self, name: str, rest: str) -> None:
        if name == "set":
            settings = change(self.settings, rest)
            self.engine.open(settings)  # raises for what cannot be decoded
            self.settings = settings
        elif name == "settings":
            _say(show(self.settings))
        elif name == "reset":
            self.conversation.messages.clear()
            _say("(a new conversation)")
        elif name == "help":
            _say(HELP)
        else:
            raise UserError(f"no command /{name}", hint="/help lists them")

    def _answer(self, said: str) -> None:
        ids, dropped = self.conversation.prompt(said, self.settings.gen_length)
        check(ids, self.settings, self.engine.bundle.model)
        if dropped:
            _say(f"(too long for the canvas: forgot the oldest {_turns(dropped)})")
        run = self.engine.decode([ids], self.settings, self.view)
        answer = run.answers[0].as_text(self.engine.text)
        if not self.shows_text:
            print(answer, flush=True)
        self.conversation.add(said, answer, dropped)
        if self.stats:
            _say("\n".join([*run.statistics.lines(), run.runs_on.line()]))


def _read() -> str | None:
    """A line; None when the input has ended."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            if sys.stdin.isatty():
                print()  # behind the prompt
            return None
        except KeyboardInterrupt:
            _say("\n(/exit or Ctrl-D leaves)")


def _turns(count: int) -> str:
    return "turn" if count == 1 else f"{count} turns"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
