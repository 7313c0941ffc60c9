"""The shapes that an engine takes: what is variable at its least, best and most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .build_error import EngineError

Shapes = tuple[list[int], list[int], list[int]]  # of an input: least, best, most


def shape_ranges(
    inputs: Mapping[str, Sequence[int | str]], spans: Mapping[str, Sequence[int]]
) -> dict[str, Shapes]:
    """Shapes of the inputs that vary, in one optimization profile.

    `inputs`: sizes and names of their axes; `spans`: least, best and most of the axes that have a
    name. Raises EngineError where an axis is in no span.
    """
    for name, axes in inputs.items():
        lost = [axis for axis in axes if isinstance(axis, str) and axis not in spans]
        if lost:
            raise EngineError(f"the manifest says nothing of the axis {lost[0]!r} of {name}")
    varying = {n: axes for n, axes in inputs.items() if any(isinstance(a, str) for a in axes)}
    return {
        name: (_shape(axes, spans, 0), _shape(axes, spans, 1), _shape(axes, spans, 2))
        for name, axes in varying.items()
    }


def _shape(axes: Sequence[int | str], spans: Mapping[str, Sequence[int]], which: int) -> list[int]:
    return [axis if isinstance(axis, int) else spans[axis][which] for axis in axes]
