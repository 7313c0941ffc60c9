"""Quantization goes block by block over what the quantized blocks before it produce."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from exporter.calibrate import batch_states, calibrate
from exporter.calibrated_block import Batch, CalibratedBlock
from exporter.layer import Layer
from exporter.model import GROUPS, make_context, rms_norm, run_block
from exporter.progress import Progress
from exporter.prompts import Prompts
from exporter.quant_options import QuantOptions
from exporter.quantize import Quantized, check_block, check_done, quantize
from exporter.recipes import Recipe, make_recipe
from exporter.runtime.settings import Settings
from exporter.work import open_work
from passes.base import Alone, Block, Stats
from passes.calibrate.states import CalibrationSet
from passes.numerics import QuantizedLinear, WeightGrid
from passes.weights.rtn import Rtn, round_to_nearest
from tests.commands import changed, content
from tests.exporter.conftest import Golden

SETTINGS = Settings(gen_length=8, steps=4, block_length=8, early_stop=False)
ASKED = Prompts(((3, 5, 8, 13), (21, 34)), (None, None), (), "made up")


def recipe_of(golden: Golden, name: str) -> Recipe:
    return make_recipe(name, golden.checkpoint.spec, QuantOptions(samples=6), "fp32")


def calibration_of(golden: Golden, recipe: Recipe, folder: Path) -> CalibrationSet | None:
    with open_work(folder) as work:
        return calibrate(
            golden.model, "digest", golden.facts, SETTINGS, ASKED, recipe, Alone(), work,
            Progress(),
        )  # fmt: skip


def run(golden: Golden, recipe: Recipe, folder: Path) -> Quantized | None:
    calibration = calibration_of(golden, recipe, folder)
    with open_work(folder) as work:
        return quantize(
            golden.model, "digest", calibration, recipe, Alone(), work, Progress()
        )  # fmt: skip


def open_block(golden: Golden, index: int, padding: int = 2) -> CalibratedBlock:
    """A block over random hidden states, some of them padding."""
    spec, draw = golden.checkpoint.spec, torch.Generator().manual_seed(index)
    hidden = torch.randn(3, 7, spec.width, generator=draw)
    valid = torch.ones(3, 7, dtype=torch.bool)
    valid[1, :padding] = False
    batch = Batch(hidden, make_context(spec, valid), valid.flatten().float())
    return CalibratedBlock(spec, "block", golden.checkpoint.block(index), [batch], Alone())


def input_of(block: CalibratedBlock, group: int) -> torch.Tensor:
    (x, weights), *others = block.inputs(GROUPS[group])
    assert not others
    assert torch.equal(weights, block.batches[0].weights)
    return x.reshape(*block.batches[0].hidden.shape[:2], -1)


def test_inputs_are_those_of_a_plain_forward(golden: Golden) -> None:
    """What the linears make of them, put together by hand, is the output of the block."""
    block = open_block(golden, 1)
    spec, w, (batch,) = block.spec, block.tensors, block.batches
    attention, output, mlp, down = (input_of(block, i) for i in range(4))
    middle = batch.hidden + output @ w["o"].T
    assert torch.equal(attention, rms_norm(batch.hidden, w["attn_norm"], spec.norm_eps))
    assert torch.equal(mlp, rms_norm(middle, w["mlp_norm"], spec.norm_eps))
    assert torch.equal(down, F.silu(mlp @ w["gate"].T) * (mlp @ w["up"].T))
    plain = run_block(spec, Layer(w), batch.hidden, batch.context)
    assert torch.equal(middle + down @ w["down"].T, plain)
    block.advance()
    assert torch.equal(block.batches[0].hidden, plain)


@pytest.mark.parametrize("group", range(4))
def test_replaced_weights_are_used_downstream_and_only_there(golden: Golden, group: int) -> None:
    block = open_block(golden, 0)
    before = [input_of(block, i) for i in range(4)]
    for linear in GROUPS[group].linears:
        block.replace(linear, round_to_nearest(block.weight(linear), WeightGrid(2, 32)))
        assert torch.equal(block.weight(linear), block.replaced[linear].dequantize())
    after = [input_of(block, i) for i in range(4)]
    for i in range(4):
        assert torch.equal(before[i], after[i]) == (i <= group)


def test_values_of_zero_leave_only_the_bias(golden: Golden) -> None:
    block = open_block(golden, 0, padding=0)
    v = block.weight("v")
    nothing = QuantizedLinear(torch.zeros_like(v, dtype=torch.int8), torch.ones(len(v), 2), 4, 32)
    block.replace("v", nothing)
    spec = block.spec
    bias = block.tensors.get("v_bias", torch.zeros(len(v))).view(spec.kv_heads, spec.head_dim)
    wanted = bias.repeat_interleave(spec.heads // spec.kv_heads, 0).flatten()
    # attention averages equal values: the weights of 7 keys sum to 1 within 7 roundings
    bound = 7 * torch.finfo(torch.float32).eps * float(wanted.abs().max())
    torch.testing.assert_close(
        input_of(block, 1), wanted.expand(3, 7, -1), rtol=0, atol=bound
    )  # fmt: skip


@pytest.mark.parametrize("damage", ["missing", "nan"])
def test_a_block_that_is_not_whole_is_noticed(llada: Golden, damage: str) -> None:
    block = open_block(llada, 0)
    block.groups = [replace(group, grid=WeightGrid(4, 32)) for group in GROUPS]
    Rtn()(block)
    check_block(block)
    check_done(block)
    if damage == "missing":
        del block.replaced["up"]
    else:
        block.tensors["up"][0, 0] = torch.nan
    with pytest.raises(AssertionError, match="up"):
        check_block(block)
        check_done(block)


@dataclass(frozen=True)
class Watched:
    """Rounds to nearest, and keeps what came in: `seen` is no setting, so not part of the repr."""

    seen: list[torch.Tensor] = field(repr=False)

    def __call__(self, block: Block, /) -> Stats:
        self.seen.append(torch.cat([x for x, _ in block.inputs(GROUPS[0])]))
        return Rtn()(block)


def test_each_block_sees_what_the_quantized_ones_before_it_produce(
    golden: Golden, tmp_path: Path
) -> None:
    seen: list[torch.Tensor] = []
    recipe = replace(recipe_of(golden, "w4a16"), blocks=(Watched(seen),))
    quantized = run(golden, recipe, tmp_path)
    calibration = calibration_of(golden, recipe, tmp_path)
    assert quantized is not None and calibration is not None
    hidden = []
    for index in range(golden.checkpoint.spec.layers):
        weights = golden.checkpoint.block(index)
        if index == 0:
            for group in batch_states(calibration.states):
                states = [calibration.states[i] for i in group]
                valid = torch.stack([state.valid for state in states])
                ids = torch.stack([state.ids for state in states])
                context = make_context(golden.checkpoint.spec, valid)
                hidden.append((golden.model.embed(ids), context))
        spec = golden.checkpoint.spec
        normed = [rms_norm(h, weights["attn_norm"], spec.norm_eps) for h, _ in hidden]
        assert torch.equal(seen[index], torch.cat([x.flatten(0, 1) for x in normed]))
        layer = quantized.block(index).layer()
        hidden = [(run_block(spec, layer, h, c), c) for h, c in hidden]


def test_rounding_to_nearest_needs_no_calibration(golden: Golden, tmp_path: Path) -> None:
    recipe = recipe_of(golden, "w4a16-rtn")
    assert calibration_of(golden, recipe, tmp_path) is None
    quantized = run(golden, recipe, tmp_path)
    assert quantized is not None
    for index in range(golden.checkpoint.spec.layers):
        weights, linears = golden.checkpoint.block(index), quantized.block(index).linears
        assert set(linears) == {name for group in GROUPS for name in group.linears}
        for name, linear in linears.items():
            assert recipe.weights is not None
            nearest = round_to_nearest(weights[name], recipe.weights)
            assert torch.equal(linear.codes, nearest.codes)
            assert torch.equal(linear.scales, nearest.scales)


def test_float_recipes_quantize_nothing(llada: Golden, tmp_path: Path) -> None:
    assert run(llada, recipe_of(llada, "fp32"), tmp_path) is None


@dataclass(frozen=True)
class Fragile:
    """Runs another pass, and dies before it in some block."""

    inner: Callable[[Block], Stats]
    dies_in: str = field(default="", repr=False)

    def __call__(self, block: Block, /) -> Stats:
        if block.name == self.dies_in:
            raise RuntimeError("power cut")
        return self.inner(block)


@pytest.mark.parametrize("name", ["w4a16", "w8a16-rtn"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_killed_quantization_goes_on_where_it_was(
    llada: Golden, tmp_path: Path, name: str, index: int
) -> None:
    recipe = recipe_of(llada, name)
    whole = replace(recipe, blocks=(Fragile(recipe.blocks[0]),))
    dying = replace(recipe, blocks=(Fragile(recipe.blocks[0], f"block {index}"),))
    undisturbed = run(llada, whole, tmp_path / "undisturbed")
    with pytest.raises(RuntimeError, match="power cut"):
        run(llada, dying, tmp_path / "killed")
    (folder,) = (tmp_path / "killed").glob("quantize-*")
    finished = changed(folder)
    assert len(finished) == 2 * index  # a table and its tensors for each block
    resumed = run(llada, whole, tmp_path / "killed")
    assert undisturbed is not None and resumed is not None and resumed.folder == folder
    assert content(folder) == content(undisturbed.folder)
    assert finished.items() <= changed(folder).items()
    times = changed(folder)
    run(llada, dying, tmp_path / "killed")  # all is there: no pass runs
    assert changed(folder) == times


def test_a_block_without_its_table_is_made_again(llada: Golden, tmp_path: Path) -> None:
    """Killed between the two files: the table comes last and says that the tensors are whole."""
    quantized = run(llada, recipe_of(llada, "w8a16-rtn"), tmp_path)
    assert quantized is not None
    expected = content(quantized.folder)
    (quantized.folder / "block-0002.json").unlink()
    (quantized.folder / "block-0002.safetensors").write_bytes(b"half")
    run(llada, recipe_of(llada, "w8a16-rtn"), tmp_path)
    assert content(quantized.folder) == expected
