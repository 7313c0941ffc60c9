"""What was said so far, as a prompt that leaves room for the answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from .bundle import ModelFacts
from .task import make_canvas
from .text import BLANK, Message, Text


@dataclass
class Conversation:
    """Turns of user and assistant in the model's chat template.

    Where there is none, or without `templated`, each turn stands on its own; so does one with
    blanks, which are filled in place.
    """

    text: Text
    model: ModelFacts
    templated: bool
    messages: list[Message] = field(default_factory=list)

    def prompt(self, said: str, gen_length: int) -> tuple[list[int], int]:
        """Ids for an answer to `said`, and how many turns it had to drop, the oldest first.

        The ids may still be too many when nothing but `said` is left.
        """
        if not self.templated or BLANK in said:
            return self.text.encode(said, self.model.mask_id, chat=False), 0
        dropped = 0
        while True:
            new = {"role": "user", "content": said}
            ids = self.text.encode_chat([*self.messages[2 * dropped :], new])
            length = make_canvas([ids], gen_length, self.model)[0].shape[1]
            if length <= self.model.max_length or 2 * dropped >= len(self.messages):
                return ids, dropped
            dropped += 1

    def add(self, said: str, answer: str, dropped: int) -> None:
        """A turn that is finished; `dropped` as `prompt` said."""
        if not self.templated or BLANK in said:
            return
        self.messages = self.messages[2 * dropped :]
        self.messages.append({"role": "user", "content": said})
        self.messages.append({"role": "assistant", "content": answer})
