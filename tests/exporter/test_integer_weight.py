"""A simulated layer whose linears our kernels multiply is the one that is computed in floats."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from exporter.layer import Layer
from exporter.linear_groups import block_groups
from exporter.quant_options import QuantOptions
from exporter.recipes import make_recipe
from exporter.simulate import simulated
from passes.activations.grid import ActivationGrid, fake_quantize
from passes.base import LinearGroup
from tests.fixtures_lower import golden
from tests.launched import host_compiler
from tests.made_up_states import LENGTH, random_ids, run_passes

pytestmark = pytest.mark.skipif(host_compiler() is None, reason="no g++")
U = 2.0**-24  # relative error of one rounding to fp32
RECIPES = {
    "w4a8-rtn": QuantOptions(activation="token"),
    "w4a8-lorc": QuantOptions(activation="token", rank=4),
    "w4a4-rtn": QuantOptions(activation="group"),
    "w8a8-rtn": QuantOptions(activation="token"),
}


def bound(layer: Layer, group: LinearGroup, name: str, x: torch.Tensor) -> torch.Tensor:
    """How far two evaluations may be apart that round a term of a sum at most K + 6 times."""
    size = fake_quantize(x, layer.activations[group.name]).abs().double()
    bias = layer.tensors.get(f"{name}_bias")
    weight = layer.tensors[name].abs().double()
    magnitude = F.linear(size, weight, None if bias is None else bias.abs().double())
    beside = layer.low_rank.get(name)
    if beside is not None:  # is added to both: one more rounding
        magnitude = magnitude + ((x @ beside.right.T) @ beside.left.T).abs()
    roundings = (x.shape[-1] + 7) * U
    return 2 * magnitude * roundings / (1 - roundings)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("family", ["llada", "dream"])
@torch.no_grad()
def test_kernels_multiply_what_floats_do(
    family: str, name: str, device: str, tmp_path: Path
) -> None:
    checkpoint = golden(family)
    recipe = make_recipe(name, checkpoint.spec, RECIPES[name], "fp32")
    quantized = run_passes(checkpoint, recipe, tmp_path)
    floats, exact = (
        simulated(checkpoint, quantized, recipe, device, integers=integers)
        for integers in (False, True)
    )
    draw = torch.Generator().manual_seed(0)
    for index, (plain, kernel) in enumerate(zip(floats.blocks(), exact.blocks(), strict=True)):
        for group in block_groups(checkpoint.spec, index):
            grid = kernel.activations[group.name]
            assert all(kernel.integers[linear].takes(grid) for linear in group.linears)
            depth = plain.tensors[group.linears[0]].shape[1]
            x = torch.randn((2, 5, depth), generator=draw).to(device)
            pairs = zip(group.linears, plain.leave(group, x), kernel.leave(group, x), strict=True)
            for linear, want, got in pairs:
                assert ((got - want).abs() <= bound(plain, group, linear, x)).all()
    ids = random_ids(checkpoint, 0.5, 0)[None]
    valid = torch.ones((1, LENGTH), dtype=torch.bool)
    assert exact.logits(ids, valid).isfinite().all()


def test_what_has_no_operator_stays_in_floats(tmp_path: Path) -> None:
    checkpoint = golden("llada")
    recipe = make_recipe("w4a8-rtn", checkpoint.spec, QuantOptions(activation="token"), "fp32")
    model = simulated(checkpoint, run_passes(checkpoint, recipe, tmp_path), recipe, integers=True)
    weight = next(iter(next(model.blocks()).integers.values()))
    assert weight.takes(ActivationGrid(8)) and weight.takes(ActivationGrid(4))
    assert not weight.takes(ActivationGrid(6))
    assert not weight.takes(ActivationGrid(8, "tensor", scale=1.0))
    assert not weight.takes(ActivationGrid(8, "group", 16))  # it has integer steps


def test_the_cpu_keeps_to_floats(tmp_path: Path) -> None:
    checkpoint = golden("llada")
    recipe = make_recipe("w4a8-rtn", checkpoint.spec, QuantOptions(activation="token"), "fp32")
    model = simulated(checkpoint, run_passes(checkpoint, recipe, tmp_path), recipe)
    assert not any(layer.integers for layer in model.blocks())
