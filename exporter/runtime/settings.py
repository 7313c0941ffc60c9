"""Every decoding option, in one frozen dataclass that checks itself."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import UserError
from .samplers import BLOCK_SAMPLERS, CANVAS_SAMPLERS, SAMPLERS, Sampler

__all__ = ["BLOCK_SAMPLERS", "CACHES", "CANVAS_SAMPLERS", "Settings"]

CACHES = ("none", "prefix", "dual", "exact")


@dataclass(frozen=True)
class Settings:
    """How to decode. `--help` of the command prints one line for each field.

    Block samplers fill blocks of `block_length` tokens from left to right; canvas samplers fill
    the whole canvas along a schedule of `steps` calls. The table in samplers.py says which fields a
    sampler reads; the others mean nothing to it. `threshold`, `low_threshold` and `gamma` None
    stand for the sampler's own numbers, `steps` None for one token a call. `steps` counts the calls
    for the generated region with LLaDA's and Dream's samplers, for one block with those of SDAR,
    LLaDA2.0 and Nemotron.
    """

    sampler: str = "low-confidence"
    cache: str = "none"
    gen_length: int = 128
    steps: int | None = None
    block_length: int = 32
    threshold: float | None = None
    factor: float = 1.0
    cfg_scale: float = 0.0
    eps: float = 1e-3
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    alg_temp: float | None = None
    seed: int = 0
    early_stop: bool = True
    eos_inf: bool = False
    confidence_eos_inf: bool = False
    low_threshold: float | None = None
    gamma: float | None = None
    radius: int = 4
    editing_threshold: float = 0.9
    max_post_steps: int = 16
    num_to_transfer: int = 1
    minimal_topk: int = 1
    sub_block_length: int = 8
    eos_early_stop: bool = False
    early_commit: bool = False
    max_forwards: int | None = None
    initial_length: int = 64
    growth: int = 8
    eos_threshold: float = 0.5
    eos_window: int = 32
    credit_alpha: float = 0.7
    credit_beta: float = 0.8
    credit_gamma: float = 0.2
    keep_threshold: float = 0.9

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_ranges()
        if self.confidence_eos_inf and (self.temperature > 0 or self.by_canvas):
            raise UserError(
                "confidence_eos_inf works with block samplers at temperature 0, not with"
                f" {self.sampler} at temperature {self.temperature:g}",
                hint="use --eos-inf, or drop --confidence-eos-inf",
            )
        if self.confidence_eos_inf and (self.rule.grows or self.rule.credited):
            raise UserError(
                f"confidence_eos_inf hides how sure the end is, which {self.sampler} has to know",
                hint="use --sampler threshold, or drop --confidence-eos-inf",
            )
        if self.rule.credited and self.temperature > 0:
            raise UserError(
                f"{self.sampler} works at temperature 0, not {self.temperature:g}",
                hint="drop --temperature, or use --sampler threshold",
            )
        if self.early_commit and "early_commit" not in self.rule.reads:
            raise UserError(
                f"early_commit does not go with the sampler {self.sampler}",
                hint="it goes with "
                + ", ".join(n for n, row in SAMPLERS.items() if "early_commit" in row.reads),
            )

    @property
    def rule(self) -> Sampler:
        """The sampler's row in the table."""
        return SAMPLERS[self.sampler]

    @property
    def by_canvas(self) -> bool:
        """True for the samplers that know no blocks (Dream's)."""
        return self.rule.by_canvas

    @property
    def by_quota(self) -> bool:
        """True for the block samplers that split `steps` over the blocks of the canvas (LLaDA)."""
        return self.rule.schedule == "even"

    @property
    def reshapes(self) -> bool:
        """True when candidates or confidences come from a changed distribution.

        That is so at temperature > 0, and, for canvas samplers, with top_p or top_k: Dream filters
        the logits before it takes confidences, at temperature 0 too. `origin` has no confidences.
        """
        filtered = self.top_k is not None or self.top_p is not None
        return self.temperature > 0 or (filtered and self.by_canvas and self.rule.drawn)

    @property
    def stops_at_once(self) -> bool:
        """True when early stop need not wait for the end of a block.

        An answer that may still be revised is not at its end before its block is.
        """
        return not self.rule.finishes or (self.eos_early_stop and not self.rule.revises)

    def limit(self, name: str) -> float:
        """The number `name`; where it is None, the sampler's own."""
        value = getattr(self, name)
        return float(self.rule.limits[name] if value is None else value)

    def _check_choices(self) -> None:
        if self.sampler not in SAMPLERS:
            known = ", ".join(SAMPLERS)
            raise UserError(f"unknown sampler {self.sampler!r}", hint=f"one of {known}")
        if self.cache not in CACHES:
            raise UserError(f"unknown cache {self.cache!r}", hint=f"one of {', '.join(CACHES)}")

    def _check_ranges(self) -> None:
        def need(holds: bool, name: str, rule: str) -> None:
            if not holds:
                raise UserError(f"{name} {getattr(self, name)} is out of range: need {rule}")

        def is_share(value: float | None) -> bool:
            return value is None or 0 < value <= 1

        need(self.gen_length >= 0, "gen_length", "0 or more")
        need(self.steps is None or self.steps >= 1, "steps", "1 or more")
        need(self.block_length >= 1, "block_length", "1 or more")
        need(is_share(self.threshold), "threshold", "0 < threshold <= 1")
        need(is_share(self.low_threshold), "low_threshold", "0 < low_threshold <= 1")
        need(is_share(self.editing_threshold), "editing_threshold", "0 < editing_threshold <= 1")
        need(0 < self.factor < float("inf"), "factor", "more than 0")
        need(self.gamma is None or 0 <= self.gamma < float("inf"), "gamma", "0 or more")
        need(self.radius >= 0, "radius", "0 or more")
        need(self.max_post_steps >= 0, "max_post_steps", "0 or more")
        need(self.num_to_transfer >= 1, "num_to_transfer", "1 or more")
        need(self.minimal_topk >= 1, "minimal_topk", "1 or more")
        need(self.sub_block_length >= 1, "sub_block_length", "1 or more")
        need(self.max_forwards is None or self.max_forwards >= 1, "max_forwards", "1 or more")
        need(is_share(self.keep_threshold), "keep_threshold", "0 < keep_threshold <= 1")
        need(self.initial_length >= 1, "initial_length", "1 or more")
        need(self.growth >= 2, "growth", "2 or more")
        need(0 < self.eos_threshold <= 1, "eos_threshold", "0 < eos_threshold <= 1")
        need(self.eos_window >= 1, "eos_window", "1 or more")
        need(0 <= self.credit_alpha < float("inf"), "credit_alpha", "0 or more")
        need(0 <= self.credit_beta <= 1, "credit_beta", "0 <= credit_beta <= 1")
        need(0 <= self.credit_gamma < float("inf"), "credit_gamma", "0 or more")
        need(0 <= self.cfg_scale < float("inf"), "cfg_scale", "0 or more")
        need(0 < self.eps < 1, "eps", "0 < eps < 1")
        need(0 <= self.temperature < float("inf"), "temperature", "0 or more")
        need(self.top_k is None or self.top_k >= 1, "top_k", "1 or more")
        need(self.top_p is None or 0 < self.top_p <= 1, "top_p", "0 < top_p <= 1")
        need(self.alg_temp is None or self.alg_temp >= 0, "alg_temp", "0 or more")
        need(self.seed >= 0, "seed", "0 or more")


def check_blocks(settings: Settings) -> None:
    """Raise UserError unless blocks divide the answer, and steps the blocks, as LLaDA needs it.

    Block-causal models have their own block length, and a canvas that is rounded up to it.
    """
    if settings.by_canvas or not settings.gen_length:
        return
    blocks, rest = divmod(settings.gen_length, settings.block_length)
    if rest:
        raise UserError(
            f"gen_length {settings.gen_length} is not a multiple of block_length"
            f" {settings.block_length}",
            hint=f"try --gen-length {(blocks + 1) * settings.block_length}"
            f" or --block-length {_divisor_near(settings.gen_length, settings.block_length)}",
        )
    if settings.by_quota and settings.steps is not None and settings.steps % blocks:
        raise UserError(
            f"steps {settings.steps} is not a multiple of the {blocks} blocks"
            f" (gen_length {settings.gen_length} / block_length {settings.block_length})",
            hint=f"try --steps {-(-settings.steps // blocks) * blocks}",
        )


def _divisor_near(number: int, wanted: int) -> int:
    """The largest divisor of `number` that is at most `wanted`."""
    return next(d for d in range(min(wanted, number), 0, -1) if number % d == 0)
