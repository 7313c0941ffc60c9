"""Decoding settings that are worth a try, for a model of either kind of attention."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.runtime.bundle import ModelFacts
from exporter.runtime.settings import Settings

THRESHOLDS = (0.99, 0.95, 0.9, 0.8, 0.7, 0.6)
FACTORS = (0.25, 0.5, 1.0, 2.0)
SHARES = (1, 2, 4)  # tokens a call of rules that commit a fixed number
BLOCKS = (8, 16, 32, 64, 128)
CACHES = ("none", "prefix", "dual")  # of full attention; block-causal models have an exact one


@dataclass(frozen=True)
class Candidate:
    """Some decoding settings; what is not in `decode` stays as the bundle has it."""

    name: str
    decode: Mapping[str, Any]

    def __hash__(self) -> int:
        return hash(self.name)


def make(**decode: Any) -> Candidate:
    """A candidate whose name tells its settings."""
    return Candidate(" ".join(f"{key}={value}" for key, value in decode.items()), decode)


def rules(model: ModelFacts, settings: Settings) -> list[Candidate]:
    """Rules with their numbers, all else as in `settings`."""
    found = _full(settings) if model.attention == "full" else _block_causal(settings)
    return list(dict.fromkeys(found))


def _full(settings: Settings) -> Iterator[Candidate]:
    for threshold in THRESHOLDS:
        yield make(sampler="threshold", threshold=threshold)
    for factor in FACTORS:
        yield make(sampler="factor", factor=factor)
    blocks = max(1, settings.gen_length // settings.block_length)
    for share in SHARES:
        steps = settings.gen_length // share // blocks * blocks
        if steps:
            yield make(sampler="low-confidence", steps=steps)


def _block_causal(settings: Settings) -> Iterator[Candidate]:
    for sampler in ("sdar-dynamic", "llada2-threshold"):
        for threshold in THRESHOLDS:
            yield make(sampler=sampler, threshold=threshold, steps=settings.block_length)
    for share in SHARES:
        if steps := settings.block_length // share:
            yield make(sampler="sdar-static", steps=steps)


def schedules(model: ModelFacts, settings: Settings) -> list[Mapping[str, Any]]:
    """Blocks and caches that a rule can be tried with, beside those of `settings`."""
    if model.attention != "full":
        return []
    length = settings.gen_length
    blocks = [block for block in (*BLOCKS, length) if block <= length and length % block == 0]
    return [
        {"block_length": block, "cache": cache}
        for block in dict.fromkeys(blocks)
        for cache in CACHES
        if (block, cache) != (settings.block_length, settings.cache)
        and not (cache != "none" and block == length and not settings.gen_length)
    ]
