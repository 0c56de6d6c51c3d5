"""A conversation in the terminal."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .assistant import Assistant, Reply
from .audio import probe
from .chat import Message
from .errors import AfnextError, AudioError

HELP = """\
Type a question and press Enter.
  /audio FILE...   listen to more recordings; they go with your next question
  /files           the recordings of this conversation
  /reset           forget what was said; keep the recordings
  /help            this list
  /quit            leave (so does Ctrl-D); Ctrl-C stops an answer"""


class Conversation:
    """Turns until the user leaves.

    Args:
        assistant: who answers.
        audio: recordings that go with the first question.
        options: of generation.
        read: how to read a line; by default ``input``, with history and editing on a terminal.
    """

    def __init__(
        self,
        assistant: Assistant,
        audio: Sequence[str],
        options: dict[str, Any],
        read: Callable[[str], str] | None = None,
    ) -> None:
        self.assistant, self.options = assistant, options
        self.read = read or _reader()
        self.messages: list[Message] = []
        self.heard: list[str] = []
        self.pending: list[str] = []
        self.failed = False
        self._add(audio)

    def run(self) -> bool:
        """Answer until the input ends; False where input from a pipe met an error."""
        interactive = sys.stdin.isatty()
        if interactive:
            files = ", ".join(Path(f).name for f in self.pending) or "none yet, add with /audio"
            _say(f"{self.assistant.variant.name}; recordings: {files}; /help for help")
        while True:
            try:
                line = self.read("> " if interactive else "").strip()
            except EOFError:
                break
            except KeyboardInterrupt:
                print(file=sys.stderr)
                continue
            if not line:
                continue
            if not line.startswith("/"):
                self._turn(line)
            elif not self._command(line):
                break
        return interactive or not self.failed

    def _command(self, line: str) -> bool:
        """Obey; False to leave."""
        verb, _, rest = line.partition(" ")
        if verb in ("/quit", "/exit"):
            return False
        if verb == "/audio":
            try:
                self._add(shlex.split(rest))
            except ValueError as error:
                _complain(f"/audio: {error}")
        elif verb == "/files":
            _say(
                "\n".join([*self.heard, *(f"{f} (with your next question)" for f in self.pending)])
            )
        elif verb == "/reset":
            self.messages, self.pending, self.heard = [], self.heard + self.pending, []
            _say("forgotten")
        elif verb == "/help":
            _say(HELP)
        else:
            _complain(f"no command {verb}; /help lists them")
        return True

    def _add(self, files: Sequence[str]) -> None:
        for file in files:
            path = Path(file).expanduser()
            try:
                if not path.is_file():
                    raise AudioError(f"{file}: no such file")
                probe(path)
            except AudioError as error:
                self.failed = True
                _complain(error.why)
            else:
                self.pending.append(str(path))

    def _turn(self, text: str) -> None:
        """One question and its answer; nothing is kept of a turn that fails."""
        try:
            question = Message("user", text, list(self.pending))
            reply = self._stream([*self.messages, question])
        except AudioError as error:
            self.failed = True
            # Without the options that would take a recording none the less: here there are none.
            _complain(error.why)
            if self.pending:  # else every further question would fail with them
                _complain(f"left out: {', '.join(self.pending)}")
                self.pending = []
            return
        except (AfnextError, RuntimeError) as error:
            self.failed = True
            _complain((str(error).splitlines() or [type(error).__name__])[0])
            return
        except KeyboardInterrupt:
            _say("\n(stopped)")
            return
        self.messages += [question, Message("assistant", reply.text)]
        self.heard += self.pending
        self.pending = []

    def _stream(self, messages: list[Message]) -> Reply:
        pieces = self.assistant.stream(messages, **self.options)
        for piece in pieces:
            if piece.reply is not None:
                print(flush=True)
                return piece.reply
            stream = sys.stderr if piece.thinking else sys.stdout
            stream.write(piece.text)
            stream.flush()
        raise RuntimeError("a stream ends with its reply")


def _reader() -> Callable[[str], str]:
    if sys.stdin.isatty():
        # input() edits and remembers lines once readline is imported; not every Python has it.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
    return input


def _complain(text: str) -> None:
    """What is wrong, as the other verbs tell it."""
    _say(f"afnext: {text}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
