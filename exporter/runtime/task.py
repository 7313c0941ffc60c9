"""What stays the same during one run of the loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .bundle import ModelFacts
from .errors import UserError
from .schedule import Block, blocks, common_blocks
from .session import Bools, Ints
from .settings import Settings, check_blocks


@dataclass(frozen=True)
class Task:
    """A canvas to fill in place, and how."""

    model: ModelFacts
    settings: Settings
    canvas: Ints  # [B, L]; only what was a mask is ever replaced
    prompt_length: int  # the generated region starts here
    key_mask: Bools  # [B, L] False = padding, at the left and behind the end of a row
    blank: Bools  # [B, L] masks before the first call

    @property
    def causal(self) -> bool:
        """True when a block sees nothing of what stands behind it."""
        return self.model.attention == "block-causal"

    @property
    def commits_causally(self) -> bool:
        """True when what stands before a block has seen nothing behind itself."""
        return self.causal and self.model.commit == "causal"

    @property
    def block_length(self) -> int:
        """Tokens of a block: the model's own where it is block-causal."""
        return (self.model.block_length if self.causal else None) or self.settings.block_length

    def masked(self) -> Bools:
        """[B, L] what is still to be filled."""
        masked: Bools = self.blank & (self.canvas == self.model.mask_id)
        return masked

    def blocks(self) -> list[Block]:
        """The blocks in decoding order."""
        if self.commits_causally:
            return common_blocks(self.blank, self.key_mask, self.prompt_length, self.block_length)
        causal = (self.key_mask, self.block_length) if self.causal else None
        return blocks(self.blank, self.prompt_length, self.settings, causal)


def make_task(
    model: ModelFacts, settings: Settings, canvas: Ints, prompt_length: int, key_mask: Bools
) -> Task:
    """A task that this loop can decode, or an error that tells why not."""
    if model.corruption != "absorbing":
        raise UserError(
            f"this loop does not decode models with {model.corruption} corruption",
            hint="it decodes absorbing masks, as LLaDA, Dream and SDAR have",
        )
    if model.attention == "block-causal":
        _check_causal(model, settings)
    else:
        _check_full(settings)
    if settings.rule.grows:
        _check_growing(model, settings)
    if settings.rule.shadowed:
        _check_shadowed(model, settings)
    longest = prompt_length + settings.gen_length
    if canvas.shape != key_mask.shape or not (
        canvas.shape[1] == longest or (model.block_length and canvas.shape[1] > longest)
    ):
        raise ValueError(
            f"canvas {canvas.shape} and key mask {key_mask.shape} do not fit a prompt of"
            f" {prompt_length} and {settings.gen_length} new tokens"
        )
    if canvas.shape[1] > max(model.max_length, longest):
        raise UserError(
            f"{longest} tokens take whole blocks up to {canvas.shape[1]}, more than the"
            f" {model.max_length} that the model takes",
            hint="shorten the prompt or give a smaller --gen-length",
        )
    blank = (canvas == model.mask_id) & key_mask
    return Task(model, settings, canvas, prompt_length, key_mask, blank)


def _check_full(settings: Settings) -> None:
    check_blocks(settings)
    if settings.cache == "exact":
        raise UserError(
            "full attention has no exact cache: every token sees those behind it",
            hint="use --cache none, or prefix or dual, which change the answer a little",
        )
    if settings.cache != "none" and settings.by_canvas:
        raise UserError(
            f"the {settings.cache} cache goes by blocks, the sampler {settings.sampler} does not",
            hint="use --cache none, or a block sampler such as threshold",
        )
    if settings.early_commit and settings.cache == "dual":
        raise UserError(
            "early_commit looks at the whole answer, with the dual cache only a block is predicted",
            hint="use --cache prefix or none",
        )


def _check_growing(model: ModelFacts, settings: Settings) -> None:
    if model.eos_id is None:
        raise UserError(
            f"{settings.sampler} goes by the end-of-text token, which this model does not have",
            hint="use another sampler, such as threshold",
        )
    if model.attention == "block-causal":
        raise UserError(
            f"{settings.sampler} looks at the end of the answer, this model sees it block by block",
            hint="use another sampler, such as threshold",
        )
    if settings.cache != "none":
        raise UserError(
            f"{settings.sampler} moves tokens, and the {settings.cache} cache holds them in place",
            hint="use --cache none, or another sampler, such as threshold",
        )


def _check_shadowed(model: ModelFacts, settings: Settings) -> None:
    if model.attention != "full" or model.shift:
        kind = "a logits shift" if model.shift else f"{model.attention} attention"
        raise UserError(
            f"{settings.sampler} looks at tokens with full attention and no shift; this model has"
            f" {kind}",
            hint="use another sampler, such as threshold",
        )
    if settings.cache != "none":
        raise UserError(
            f"{settings.sampler} has no use for the {settings.cache} cache: it looks at all tokens",
            hint="use --cache none, or another sampler, such as threshold",
        )


def _check_causal(model: ModelFacts, settings: Settings) -> None:
    if settings.by_canvas:
        raise UserError(
            f"the sampler {settings.sampler} fills the whole canvas in any order, but this model"
            " sees no block before those left of it are filled",
            hint="use a block sampler such as sdar-dynamic or threshold",
        )
    if settings.cache in ("prefix", "dual"):
        raise UserError(
            f"the {settings.cache} cache approximates full attention; this model is block-causal",
            hint="use --cache exact, which changes nothing, or none",
        )
    if settings.early_commit:
        raise UserError(
            "early_commit looks at the whole answer, this model sees it block by block",
            hint="use a threshold sampler",
        )
    if model.block_seed == "token" and not model.shift and model.commit != "causal":
        raise UserError(
            "this loop seeds blocks by a logits shift or by a causal pass, the model has neither",
            hint="build the bundle again",
        )
    own, asked = model.block_length, settings.block_length
    if asked not in (
        own,
        settings.gen_length,
    ):  # a block as long as the answer is what defaults become
        raise UserError(
            f"block_length {asked} does not fit the graphs, whose attention has blocks of {own}",
            hint=f"use --block-length {own}, or build the bundle for {asked}",
        )


def make_canvas(
    prompts: list[list[int]], gen_length: int, model: ModelFacts
) -> tuple[Ints, int, Bools]:
    """(canvas [B, L], prompt length, key mask [B, L]) for prompts, padded on the left.

    `gen_length` masks follow each prompt. Block-causal models get whole blocks, counted from the
    first token of the prompt: more masks, and padding behind rows that end before others. Those
    that commit causally count blocks from the end of the prompt.
    Prompts may hold mask ids: blanks to fill.
    """
    longest, size = max(map(len, prompts)), _block_of(model)
    pads = [longest - len(prompt) for prompt in prompts]
    starts = [longest if model.commit == "causal" else pad for pad in pads]  # of the blocks
    ends = [start - (-(longest - start + gen_length) // size) * size for start in starts]
    canvas = np.full((len(prompts), max(ends)), model.pad_id, np.int64)
    key_mask = np.zeros(canvas.shape, np.bool_)
    for row, (prompt, pad, end) in enumerate(zip(prompts, pads, ends, strict=True)):
        canvas[row, pad:longest] = prompt
        canvas[row, longest:end] = model.mask_id
        key_mask[row, pad:end] = True
    return canvas, longest, key_mask


def _block_of(model: ModelFacts) -> int:
    return (model.block_length if model.attention == "block-causal" else None) or 1
