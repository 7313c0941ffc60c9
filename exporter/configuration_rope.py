"""What config.json says about positions: YaRN's numbers, and queries that grow with them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.configuration_experts import positive
from exporter.errors import UserError
from exporter.families import QueryScale, Yarn

USUAL = {"beta_fast": 32.0, "beta_slow": 1.0}  # of the paper


def read_rope(
    folder: Path, key: str | None, config: Mapping[str, Any], max_length: int
) -> tuple[Yarn | None, QueryScale | None]:
    """What the table `key` of config.json says; (None, None) for families without one.

    Raises UserError for kinds of rotary embedding that are not implemented, and bad numbers.
    """
    table = config.get(key) if key is not None else None
    if key is None or table is None:
        return None, None
    kind = table.get("rope_type", table.get("type", "default"))
    if kind not in ("default", "yarn"):
        raise UserError(
            f"`{folder}/config.json` sets {key}.rope_type = {kind!r}, which is not implemented",
            "Implemented: default, yarn",
        )
    known: dict[str, Any] = {"original_max_position_embeddings": max_length, **USUAL}
    known |= {name: value for name, value in table.items() if value is not None}

    def number(name: str) -> float:
        return float(positive(folder, f"{key}.{name}", known.get(name), float))

    length = int(number("original_max_position_embeddings"))
    scale = None
    if known.get("llama_4_scaling_beta"):
        scale = QueryScale(number("llama_4_scaling_beta"), length)
    if kind == "default":
        return None, scale
    factor = number("factor")
    fast, slow = number("beta_fast"), number("beta_slow")
    if known.get("attention_factor"):
        attention = number("attention_factor")
    elif known.get("mscale") and known.get("mscale_all_dim"):
        attention = _growth(factor, number("mscale")) / _growth(factor, number("mscale_all_dim"))
    else:
        attention = _growth(factor, 1.0)
    return Yarn(factor, length, fast, slow, attention), scale


def _growth(factor: float, share: float) -> float:
    """How much larger the scores of attention are in a text that is `factor` times as long.

    Its square is what the paper divides the temperature by (YaRN, arXiv 2309.00071, equation 22);
    `share` is DeepSeek-V2's (arXiv 2405.04434, section 3.1.4).
    """
    return 0.1 * share * math.log(factor) + 1 if factor > 1 else 1.0
