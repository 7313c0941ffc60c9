"""A quantized model in torch: the numbers of its bundle, without one.

Weights, activations and attention operands take the values that the emitted graphs compute with;
products of integers are computed in floats, which differs from the graphs by fp32 rounding only.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from exporter.float_session import KEEP_BYTES, FloatModel
from exporter.layer import Layer
from exporter.linear_groups import EXACT
from exporter.quantize import Quantized
from exporter.recipes import Recipe
from exporter.rotated import Rotated
from exporter.rounded import Rounded
from exporter.source import Source


def turned(source: Source, recipe: Recipe) -> Source:
    """The float model in the basis that the recipe quantizes it in."""
    return source if recipe.rotation is None else Rotated(source, recipe.rotation)


def simulated(
    source: Source,
    quantized: Quantized | None,
    recipe: Recipe,
    device: str = "cpu",
    keep: int = KEEP_BYTES,
) -> FloatModel:
    """The model that a bundle of `recipe` runs, over the float checkpoint `source`.

    With fp16 arithmetic only the weights are rounded to fp16: activations stay fp32. `keep` is that
    of FloatModel.
    """
    rounded = Rounded(turned(source, recipe), recipe)

    def layer(index: int) -> Layer:
        if quantized is None:
            found = Layer(source.block(index, device))
        else:
            found = quantized.block(index).to(device).layer()
        return replace(found, tensors=_half(found.tensors)) if recipe.compute == "fp16" else found

    return FloatModel(rounded, device, layer, keep, recipe.kv_bits)


def _half(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: t if n in EXACT else t.half().float() for n, t in tensors.items()}
