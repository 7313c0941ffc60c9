"""A quantized model in torch: the numbers of its bundle, without one.

Weights, activations and attention operands take the values that the emitted graphs compute with;
products of integers are computed in floats, which differs from the graphs by fp32 rounding only. On
a GPU, where nvcc is, our kernels multiply the integers themselves.
"""

import logging
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

log = logging.getLogger(__name__)


def turned(source: Source, recipe: Recipe) -> Source:
    """The float model in the basis that the recipe quantizes it in."""
    return source if recipe.rotation is None else Rotated(source, recipe.rotation)


def simulated(
    source: Source,
    quantized: Quantized | None,
    recipe: Recipe,
    device: str = "cpu",
    keep: int = KEEP_BYTES,
    integers: bool | None = None,
) -> FloatModel:
    """The model that a bundle of `recipe` runs, over the float checkpoint `source`.

    With fp16 arithmetic only the weights are rounded to fp16: activations stay fp32. `keep` is that
    of FloatModel. `integers`: linears that have an operator run as such, in fp32 arithmetic; None:
    where there is a GPU and nvcc.
    """
    if integers is None:
        integers = device != "cpu" and quantized is not None and has_kernels(device)
    exact = integers and recipe.compute == "fp32"
    rounded = Rounded(turned(source, recipe), recipe)

    def layer(index: int) -> Layer:
        if quantized is None:
            found = Layer(source.block(index, device))
        else:
            found = quantized.block(index).to(device).layer(exact)
        return replace(found, tensors=_half(found.tensors)) if recipe.compute == "fp16" else found

    return FloatModel(rounded, device, layer, keep, recipe.kv_bits)


def has_kernels(device: str) -> bool:
    """Whether our kernels run there; they are compiled, once, where they are not yet."""
    from ort_ops.torch_binding import missing  # defines operators, which only this needs

    why = missing(torch.device(device))
    if why is not None:
        log.info("linears are computed in floats: %s", why)
    return why is None


def _half(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: t if n in EXACT else t.half().float() for n, t in tensors.items()}
