"""What a user can set about quantization; light to import, so that the command line can show it."""

from dataclasses import dataclass, field
from typing import Any, Literal


def _option(default: Any, about: str) -> Any:
    return field(default=default, metadata={"help": about})


@dataclass(frozen=True)
class QuantOptions:
    """Settings of recipes; None leaves it to the recipe. The texts are those of the flags."""

    group: int | None = _option(None, "Inputs a scale: 32, 64 or 128.")
    activation: Literal["token", "group", "tensor"] | None = _option(
        None, "Scales of activations: one a token, a token and group, or a calibrated one."
    )
    q_bits: int | None = _option(None, "Of queries in attention: 4, 8, or 16 for float.")
    k_bits: int | None = _option(None, "Of keys.")
    v_bits: int | None = _option(None, "Of values.")
    p_bits: int | None = _option(None, "Of attention probabilities.")
    p_scale: Literal["static", "row"] = _option("row", "Scale of probabilities: of a row, or one.")
    attention_limit: float | None = _option(
        None, "Error of attention, relative and squared, above which a block takes floats for it."
    )
    kv_bits: int = _option(16, "Of kept keys and values (--cache): 8, 4, or 16 as computed.")
    clip: bool | None = _option(None, "Search weight scales instead of covering maxima.")
    act_order: bool = _option(False, "GPTQ: columns of large input first.")
    damping: float = _option(0.01, "GPTQ: share of the mean diagonal.")
    rank: int = _option(16, "LoRC: rank of the correction.")
    rotation_seed: int = _option(0, "QuaRot, DuQuant: which random rotation.")
    samples: int = _option(128, "Calibration states.")
    bins: Literal["mask-ratio", "trajectory"] = _option("mask-ratio", "TMAS: what bins divide.")
    visible_score: Literal["model", "commit", "zero"] = _option(
        "model", "CGQ: score of visible tokens."
    )
    alphas: Literal["paper", "range", "wide"] = _option("range", "IA-AQ: scales that are tried.")
    mean_bits: float | None = _option(
        None, "Mixed precision: bits a weight that the blocks may take; the rest goes to 8 bits."
    )
    budget: float | None = _option(
        None, "Mixed precision: KL to the float model that 8-bit groups must bring it under."
    )
    head_bits: int = _option(8, "Of the head: 8, 4, or 16 for float.")
    embed_bits: int = _option(16, "Of embeddings: 8, or 16 for float.")
    seed: int = _option(0, "Of all random draws.")
