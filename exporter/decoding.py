"""Decoding defaults of a bundle, and what the loop must know of its model."""

import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any

from exporter.checkpoint import Checkpoint
from exporter.errors import UserError
from exporter.families import Spec
from exporter.manifest import ModelFacts
from exporter.runtime import bundle as runtime_bundle
from exporter.runtime.errors import UserError as RuntimeUserError
from exporter.runtime.settings import Settings, check_blocks

MODEL_CALLS = 32  # most calls of one roll-out in calibration and gate
CACHE_BYTES = (
    2**30
)  # of the float model's keys and values, of all rows that are rolled out together
BY_BLOCK = ("block-quota", "in-steps")  # schedules whose steps are those of one block
MAX_CANVAS = 4096  # tokens, where the user does not say and the model would take more

# generation_config.json, where a checkpoint has one: upstream key -> our setting, what it may be
UPSTREAM_KEYS: dict[str, tuple[str, type | UnionType]] = {
    "max_new_tokens": ("gen_length", int),
    "gen_length": ("gen_length", int),
    "steps": ("steps", int),
    "block_length": ("block_length", int),
    "denoising_steps": ("steps", int),
    "eps": ("eps", int | float),
    "threshold": ("threshold", int | float),
    "editing_threshold": ("editing_threshold", int | float),
    "alg": ("sampler", str),
    "remasking_strategy": ("sampler", str),
}
UPSTREAM_SAMPLERS = {
    "maskgit_plus": "maskgit-plus",
    "topk_margin": "topk-margin",
    "low_confidence": "low-confidence",
    "low_confidence_static": "sdar-static",
    "low_confidence_dynamic": "sdar-dynamic",
    "sequential": "sdar-sequential",
    "entropy_bounded": "sdar-entropy",
}


@dataclass(frozen=True)
class DecodeOptions:
    """What a user can set at build time; None leaves it to the checkpoint and its family."""

    sampler: str | None = None
    gen_length: int | None = None
    steps: int | None = None
    block_length: int | None = None
    max_canvas: int | None = None


def default_settings(checkpoint: Checkpoint, options: DecodeOptions) -> Settings:
    """Decoding defaults: from the options, else generation_config.json, else the family."""
    values: dict[str, Any] = {"sampler": checkpoint.family.sampler, **checkpoint.family.decode}
    values |= _upstream(checkpoint.folder)
    given = {f.name: getattr(options, f.name) for f in fields(options) if f.name != "max_canvas"}
    values |= {name: value for name, value in given.items() if value is not None}
    if checkpoint.spec.attention == "block-causal":
        values |= {"cache": "exact", "block_length": _own_block(checkpoint, options)}
    else:
        length = values.get("gen_length", Settings.gen_length)
        values["block_length"] = min(values.get("block_length", Settings.block_length), length)
    try:
        settings = Settings(**values)
        if checkpoint.spec.attention == "full":
            check_blocks(settings)
    except RuntimeUserError as error:
        hint = error.hint or "Check the options and the checkpoint's generation_config.json"
        raise UserError(str(error), hint) from None
    return settings


def _own_block(checkpoint: Checkpoint, options: DecodeOptions) -> int:
    """The block length of a block-causal model, which is a part of its graphs."""
    own = checkpoint.spec.block_length
    assert own is not None
    if options.block_length not in (None, own):
        raise UserError(
            f"A block length of {options.block_length} does not go with attention in blocks of"
            f" {own}",
            "Leave --block-length out; for a model that was trained so,"
            f" --attention-block {options.block_length} changes the mask",
        )
    return own


def _upstream(folder: Path) -> dict[str, Any]:
    file = folder / "generation_config.json"
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"`{file}` is not JSON: {error}", "Mend or remove it") from None
    if not isinstance(content, dict):
        raise UserError(
            f"`{file}` holds {type(content).__name__}, not a table", "Mend or remove it"
        )
    found: dict[str, Any] = {}
    for key, (ours, kind) in UPSTREAM_KEYS.items():
        if value := content.get(key):
            if not isinstance(value, kind):
                raise UserError(f"`{file}` has {key} = {value!r}", "Mend or remove it")
            found[ours] = value
    if "sampler" in found:
        found["sampler"] = UPSTREAM_SAMPLERS.get(found["sampler"], found["sampler"])
    return found


def longest_canvas(checkpoint: Checkpoint, options: DecodeOptions, settings: Settings) -> int:
    """Tokens of the longest canvas that the bundle takes, prompt and answer together."""
    most = checkpoint.spec.max_length
    wanted = min(most, MAX_CANVAS) if options.max_canvas is None else options.max_canvas
    if not settings.gen_length < wanted <= most:
        raise UserError(
            f"A canvas of {wanted} tokens does not work: the answer takes {settings.gen_length}, "
            f"the model was trained for {most}",
            f"Give --max-canvas between {settings.gen_length + 1} and {most}, or --gen-length",
        )
    return wanted


def plain(settings: Settings) -> Settings:
    """The same rule without chance, guidance and early stop: what two models can be compared by.

    Without caches that change what a model predicts, too: the gate feeds whole canvases. A rule
    whose states depend on more than the canvas is replaced by the one that it builds on.
    """
    return replace(
        settings,
        sampler=settings.rule.stand_in or settings.sampler,
        cache="none" if settings.cache in ("prefix", "dual") else settings.cache,
        cfg_scale=0.0,
        temperature=0.0,
        top_k=None,
        top_p=None,
        alg_temp=None,
        early_stop=False,
        eos_inf=False,
        confidence_eos_inf=False,
    )


def comparable(settings: Settings) -> Settings:
    """The deployed settings, plain, in at most MODEL_CALLS calls.

    Calibration and gate roll out with these: the deployed rule, a coarser schedule where the
    deployed one commits one token at a time. A block takes one call at least.
    """
    settings = plain(settings)
    if settings.rule.schedule in BY_BLOCK:
        most = max(1, MODEL_CALLS // _block_count(settings))
        fewer = min(settings.steps or settings.block_length, settings.block_length)
        return settings if fewer <= most else replace(settings, steps=most)
    calls = settings.steps or settings.gen_length
    if calls <= MODEL_CALLS:
        return settings
    if settings.by_canvas:
        return replace(settings, steps=MODEL_CALLS)
    blocks = _block_count(settings)
    return replace(settings, steps=blocks * max(1, MODEL_CALLS // blocks))


def _block_count(settings: Settings) -> int:
    """Blocks of the answer, without the one that it may share with a prompt."""
    return max(1, -(-settings.gen_length // settings.block_length))


def for_answer(settings: Settings, length: int | None, block_causal: bool) -> Settings:
    """`settings` for an answer of its own `length`; None: as they are.

    One block for the whole answer stays that, and one token a step too. Blocks and steps that do
    not divide the answer are made smaller until they do, unless the model has blocks of its own.
    """
    if length is None or length == settings.gen_length:
        return settings
    if block_causal:
        return replace(settings, gen_length=length)
    whole = settings.block_length >= settings.gen_length
    block = length if whole else math.gcd(settings.block_length, length)
    steps = settings.steps
    if steps is not None and settings.rule.schedule not in BY_BLOCK:
        blocks = 1 if settings.by_canvas else length // block
        every = steps == settings.gen_length
        steps = length if every else blocks * max(1, min(steps, length) // blocks)
    return replace(settings, gen_length=length, block_length=block, steps=steps)


def with_room(settings: Settings, spec: Spec, rows: int, length: int) -> Settings:
    """`settings` without the exact cache, which changes no answer, where it takes much memory.

    Keys and values in fp32 of `rows` canvases of `length` positions.
    """
    wanted = 2 * 4 * spec.layers * rows * length * spec.kv_heads * spec.head_dim
    return settings if wanted <= CACHE_BYTES else replace(settings, cache="none")


def most_calls(settings: Settings) -> int:
    """Model calls of one roll-out, at most, where no block is shared with the prompt."""
    blocks, rule = _block_count(settings), settings.rule
    if rule.schedule in BY_BLOCK:
        return blocks * min(settings.steps or settings.block_length, settings.block_length)
    calls = settings.steps if settings.steps and "steps" in rule.reads else settings.gen_length
    if rule.schedule == "editing":
        calls += blocks * (settings.max_post_steps + 1)
    return max(calls, 1)


def describe_model(checkpoint: Checkpoint, digest: str, used_vocab: int, canvas: int) -> ModelFacts:
    """The manifest's section on the model."""
    spec = checkpoint.spec
    same = {f for f in ModelFacts.model_fields if hasattr(spec, f)}
    facts = {f: getattr(spec, f) for f in same}
    return ModelFacts(
        **facts
        | {
            "name": checkpoint.folder.resolve().name,
            "checkpoint": digest,
            "parameters": checkpoint.parameters,
            "vocab_size": used_vocab,
            "head_rows": spec.vocab_size,
            "max_length": canvas,
        }
    )


def loop_facts(facts: ModelFacts) -> runtime_bundle.ModelFacts:
    """The same, as the loop reads it from a manifest."""
    values = {f.name: getattr(facts, f.name) for f in fields(runtime_bundle.ModelFacts)}
    return runtime_bundle.ModelFacts(**{**values, "special_ids": tuple(facts.special_ids)})
