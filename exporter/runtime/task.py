"""What stays the same during one run of the loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .bundle import ModelFacts
from .errors import UserError
from .session import Bools, Ints
from .settings import Settings


@dataclass(frozen=True)
class Task:
    """A canvas to fill in place, and how."""

    model: ModelFacts
    settings: Settings
    canvas: Ints  # [B, L]; only masks are ever replaced
    prompt_length: int  # the generated region starts here
    key_mask: Bools  # [B, L] False = padding
    blank: Bools  # [B, L] masks before the first call

    def masked(self) -> Bools:
        """[B, L] what is still to be filled."""
        masked: Bools = self.blank & (self.canvas == self.model.mask_id)
        return masked


def make_task(
    model: ModelFacts, settings: Settings, canvas: Ints, prompt_length: int, key_mask: Bools
) -> Task:
    """A task that this loop can decode, or an error that tells why not."""
    if model.attention != "full" or model.corruption != "absorbing":
        raise UserError(
            f"this loop does not decode models with {model.attention} attention and"
            f" {model.corruption} corruption",
            hint="it decodes full attention with absorbing masks, as LLaDA and Dream have",
        )
    if settings.cache != "none":
        raise UserError(
            f"this loop does not decode with the {settings.cache} cache", hint="use --cache none"
        )
    if canvas.shape != key_mask.shape or canvas.shape[1] != prompt_length + settings.gen_length:
        raise ValueError(
            f"canvas {canvas.shape} and key mask {key_mask.shape} do not fit a prompt of"
            f" {prompt_length} and {settings.gen_length} new tokens"
        )
    blank = (canvas == model.mask_id) & key_mask
    return Task(model, settings, canvas, prompt_length, key_mask, blank)


def make_canvas(
    prompts: list[list[int]], gen_length: int, model: ModelFacts
) -> tuple[Ints, int, Bools]:
    """(canvas [B, L], prompt length, key mask [B, L]) for prompts, padded on the left.

    The canvas ends with `gen_length` masks. Prompts may hold mask ids: blanks to fill.
    """
    longest = max(map(len, prompts))
    canvas = np.full((len(prompts), longest + gen_length), model.mask_id, np.int64)
    key_mask = np.ones(canvas.shape, np.bool_)
    for row, prompt in enumerate(prompts):
        pad = longest - len(prompt)
        canvas[row, :pad], key_mask[row, :pad] = model.pad_id, False
        canvas[row, pad:longest] = prompt
    return canvas, longest, key_mask
