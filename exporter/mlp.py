"""The second half of a block in torch: a gated MLP, or experts that share the tokens out."""

from collections.abc import Generator

import torch
import torch.nn.functional as F

from exporter.experts import route
from exporter.families import Spec
from exporter.layer import Layer
from exporter.linear_groups import MLP, SHARED_EXPERT, expert
from passes.base import LinearGroup

Trace = Generator[tuple[str, torch.Tensor], None, torch.Tensor]


def trace_mlp(spec: Spec, layer: Layer, x: torch.Tensor) -> Trace:
    """Run the MLP over normed hidden states x (B, S, D), stopping before each group of linears.

    Yields (group name, its input, turned but not rounded): (B, S, in), or (tokens, in) for experts,
    of the tokens that are routed to each. Returns what is added to the hidden states.
    """
    if "router" not in layer.tensors:
        return (yield from trace_gated(layer, MLP, x))
    assert spec.experts is not None
    flat = x.flatten(0, 1)
    routing = route(spec.experts, layer.tensors, flat)
    total = torch.zeros_like(flat)
    if spec.experts.shared_width:
        total += yield from trace_gated(layer, SHARED_EXPERT, flat)
    for number in range(spec.experts.count):
        rows, weights = routing.tokens(number)
        y = yield from trace_gated(layer, expert(number), flat[rows])
        total.index_add_(0, rows, y * weights)
    return total.view(x.shape)


def trace_gated(layer: Layer, groups: tuple[LinearGroup, LinearGroup], x: torch.Tensor) -> Trace:
    """down(silu(gate(x)) · up(x)), stopping before either group."""
    into, out_of = groups
    x = layer.enter(into, x)
    yield into.name, x
    gate, up = layer.leave(into, x)
    x = layer.enter(out_of, F.silu(gate) * up)
    yield out_of.name, x
    return layer.leave(out_of, x)[0]


def finish(trace: Trace) -> torch.Tensor:
    """What a trace returns at its end."""
    while True:
        try:
            next(trace)
        except StopIteration as end:
            value: torch.Tensor = end.value
            return value
