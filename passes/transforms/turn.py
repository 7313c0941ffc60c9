"""Turn the input of a group while the model runs, and its weights once: the output stays."""

from passes.base import Block, LinearGroup
from passes.transforms.online import Transform


def turn(block: Block, group: LinearGroup, step: Transform) -> None:
    """Let the input of `group` go through `step`, and turn its weights along."""
    block.transform(group, step)
    turn_weights(block, group, step)


def turn_weights(block: Block, group: LinearGroup, step: Transform) -> None:
    """Bring the weights (out, in) of `group` into the basis of an input that `step` has turned."""
    for linear in group.linears:
        block.set(linear, step(block.weight(linear)).contiguous())


def fed_by(block: Block, source: str) -> LinearGroup:
    """The group whose input the linear or norm `source` makes; ValueError if there is none."""
    for group in block.groups:
        if group.source == source:
            return group
    raise ValueError(f"{block.name}: no linear reads what `{source}` makes")
