"""The linears of a block in groups that share one input, in the order in which they run."""

import re

from exporter.families import Spec
from passes.base import LinearGroup

ATTENTION = (
    LinearGroup("attention input", ("q", "k", "v"), "attn_norm"),
    LinearGroup("attention output", ("o",), "v"),
)
MLP = (
    LinearGroup("mlp input", ("gate", "up"), "mlp_norm"),
    LinearGroup("mlp output", ("down",), "up"),
)
# Router and experts read one norm, so no scale of one of them can be folded into it.
SHARED_EXPERT = (
    LinearGroup("shared expert input", ("shared_gate", "shared_up")),
    LinearGroup("shared expert output", ("shared_down",), "shared_up"),
)
EXACT = ("router", "expert_bias")  # always computed in fp32 and never rounded


def expert(number: int) -> tuple[LinearGroup, LinearGroup]:
    """The groups of one expert."""
    return (
        LinearGroup(f"expert {number} input", (f"gate_{number}", f"up_{number}")),
        LinearGroup(f"expert {number} output", (f"down_{number}",), f"up_{number}"),
    )


def expert_number(group: LinearGroup) -> int | None:
    """Which expert a group is of; None for others, the shared expert included."""
    number = group.linears[0].rpartition("_")[2]
    return int(number) if number.isdigit() else None


def block_groups(spec: Spec, index: int) -> tuple[LinearGroup, ...]:
    """All groups of block `index`."""
    experts = spec.experts
    if experts is None or not experts.blocks[index]:
        return (*ATTENTION, *MLP)
    shared = SHARED_EXPERT if experts.shared_width else ()
    routed = (group for number in range(experts.count) for group in expert(number))
    return (*ATTENTION, *shared, *routed)


def group_of_each(spec: Spec, index: int) -> dict[str, LinearGroup]:
    """The linears of block `index` that can be quantized, which is all but the router."""
    return {name: group for group in block_groups(spec, index) for name in group.linears}


def role(name: str) -> str:
    """`gate`, `up` or `down` for the linears of any MLP or expert; other names as they are."""
    found = re.fullmatch(r"(?:shared_)?(gate|up|down)(?:_\d+)?", name)
    return found[1] if found else name
