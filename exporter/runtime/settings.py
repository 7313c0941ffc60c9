"""Every decoding option, in one frozen dataclass that checks itself."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import UserError

BLOCK_SAMPLERS = ("low-confidence", "random", "threshold", "factor")
CANVAS_SAMPLERS = ("maskgit-plus", "topk-margin", "entropy", "origin")
CACHES = ("none", "prefix", "dual", "exact")


@dataclass(frozen=True)
class Settings:
    """How to decode. `--help` of the command prints one line for each field.

    Block samplers fill blocks of `block_length` tokens from left to right (LLaDA, Fast-dLLM);
    canvas samplers fill the whole canvas along a schedule of `steps` calls (Dream). A field that
    the chosen sampler does not know is not read: `threshold` is for `threshold`, `factor` for
    `factor`, `eps` and `alg_temp` for canvas samplers, `block_length` for block samplers, `steps`
    for all but `threshold` and `factor`. `steps` None means one token a call.
    """

    sampler: str = "low-confidence"
    cache: str = "none"
    gen_length: int = 128
    steps: int | None = None
    block_length: int = 32
    threshold: float = 0.9
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

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_ranges()
        self._check_divisions()
        if self.confidence_eos_inf and (self.temperature > 0 or self.by_canvas):
            raise UserError(
                "confidence_eos_inf works with block samplers at temperature 0, not with"
                f" {self.sampler} at temperature {self.temperature:g}",
                hint="use --eos-inf, or drop --confidence-eos-inf",
            )

    @property
    def by_canvas(self) -> bool:
        """True for the samplers that know no blocks (Dream's)."""
        return self.sampler in CANVAS_SAMPLERS

    @property
    def by_quota(self) -> bool:
        """True for the block samplers that commit a fixed number of tokens a call."""
        return self.sampler in ("low-confidence", "random")

    @property
    def reshapes(self) -> bool:
        """True when candidates or confidences come from a changed distribution.

        That is so at temperature > 0, and, for canvas samplers, with top_p or top_k: Dream filters
        the logits before it takes confidences, at temperature 0 too. `origin` has no confidences.
        """
        filtered = self.top_k is not None or self.top_p is not None
        return self.temperature > 0 or (filtered and self.by_canvas and self.sampler != "origin")

    def _check_choices(self) -> None:
        known = BLOCK_SAMPLERS + CANVAS_SAMPLERS
        if self.sampler not in known:
            raise UserError(f"unknown sampler {self.sampler!r}", hint=f"one of {', '.join(known)}")
        if self.cache not in CACHES:
            raise UserError(f"unknown cache {self.cache!r}", hint=f"one of {', '.join(CACHES)}")

    def _check_ranges(self) -> None:
        def need(holds: bool, name: str, rule: str) -> None:
            if not holds:
                raise UserError(f"{name} {getattr(self, name)} is out of range: need {rule}")

        need(self.gen_length >= 0, "gen_length", "0 or more")
        need(self.steps is None or self.steps >= 1, "steps", "1 or more")
        need(self.block_length >= 1, "block_length", "1 or more")
        need(0 < self.threshold <= 1, "threshold", "0 < threshold <= 1")
        need(0 < self.factor < float("inf"), "factor", "more than 0")
        need(0 <= self.cfg_scale < float("inf"), "cfg_scale", "0 or more")
        need(0 < self.eps < 1, "eps", "0 < eps < 1")
        need(0 <= self.temperature < float("inf"), "temperature", "0 or more")
        need(self.top_k is None or self.top_k >= 1, "top_k", "1 or more")
        need(self.top_p is None or 0 < self.top_p <= 1, "top_p", "0 < top_p <= 1")
        need(self.alg_temp is None or self.alg_temp >= 0, "alg_temp", "0 or more")
        need(self.seed >= 0, "seed", "0 or more")

    def _check_divisions(self) -> None:
        if self.by_canvas or not self.gen_length:
            return
        blocks, rest = divmod(self.gen_length, self.block_length)
        if rest:
            raise UserError(
                f"gen_length {self.gen_length} is not a multiple of block_length"
                f" {self.block_length}",
                hint=f"try --gen-length {(blocks + 1) * self.block_length}"
                f" or --block-length {_divisor_near(self.gen_length, self.block_length)}",
            )
        if self.by_quota and self.steps is not None and self.steps % blocks:
            raise UserError(
                f"steps {self.steps} is not a multiple of the {blocks} blocks"
                f" (gen_length {self.gen_length} / block_length {self.block_length})",
                hint=f"try --steps {-(-self.steps // blocks) * blocks}",
            )


def _divisor_near(number: int, wanted: int) -> int:
    """The largest divisor of `number` that is at most `wanted`."""
    return next(d for d in range(min(wanted, number), 0, -1) if number % d == 0)
