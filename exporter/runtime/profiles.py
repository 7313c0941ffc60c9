"""Optimization profiles of an engine: the shapes that its inputs may have."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import UserError

Shape = tuple[int, ...]
WINDOW = "window"


@dataclass(frozen=True)
class Profile:
    """The least and the largest shape of every input."""

    index: int
    least: Mapping[str, Shape]
    most: Mapping[str, Shape]

    def holds(self, shapes: Mapping[str, Shape], but: Collection[str] = ()) -> bool:
        """Whether all shapes lie within, those of inputs in `but` aside."""
        return all(
            len(shape) == len(self.least[name])
            and all(map(_between, self.least[name], shape, self.most[name]))
            for name, shape in shapes.items()
            if name not in but
        )

    @property
    def size(self) -> int:
        """Elements of all inputs at their largest: smaller ones run on better kernels."""
        return sum(math.prod(shape) for shape in self.most.values())

    @property
    def window(self) -> int:
        """Positions that one call predicts at most."""
        return self.most[WINDOW][0]


def _between(least: int, size: int, most: int) -> bool:
    return least <= size <= most


def profiles_of(engine: Any, inputs: Sequence[str]) -> list[Profile]:
    """Every profile of an engine."""
    found = []
    for index in range(engine.num_optimization_profiles):
        spans = {name: engine.get_tensor_profile_shape(name, index) for name in inputs}
        least = {name: tuple(span[0]) for name, span in spans.items()}
        most = {name: tuple(span[2]) for name, span in spans.items()}
        found.append(Profile(index, least, most))
    return found


def choose_profile(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> Profile:
    """The smallest profile that holds `shapes`; if none does for its window alone, the largest one.

    Then the window must be split. Raises UserError where nothing fits.
    """
    fit = [profile for profile in profiles if profile.holds(shapes, but=(WINDOW,))]
    whole = [profile for profile in fit if profile.holds(shapes)]
    if whole:
        return min(whole, key=lambda profile: profile.size)
    if fit:
        return max(fit, key=lambda profile: profile.window)
    raise UserError(
        f"the engine takes no {_listed(shapes)}; its profiles end at "
        + "; ".join(_listed({name: p.most[name] for name in shapes}) for p in profiles),
        hint="decode fewer prompts at once, build the bundle for more with --engine-batch or"
        " --max-canvas, or use --provider cuda or cpu",
    )


def _listed(shapes: Mapping[str, Shape]) -> str:
    known = [name for name in ("input_ids", "key_mask", "shadow") if name in shapes]
    return ", ".join(f"{name} {'×'.join(map(str, shapes[name]))}" for name in known)
