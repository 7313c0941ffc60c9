"""What the passes made of a block comes back from disk bit for bit, or not at all."""

import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.calibrated_block import CalibratedBlock
from exporter.float_session import FloatModel
from exporter.model import make_context, run_block
from exporter.quant_options import QuantOptions
from exporter.quantize import Quantized, make_batches, open_block
from exporter.quantized_block import QuantizedBlock, load, save
from exporter.recipes import make_recipe
from exporter.simulate import turned
from passes.activations.attention import AttentionGrid
from passes.activations.grid import ActivationGrid
from passes.base import Alone, LowRank, run
from passes.numerics import WeightGrid
from passes.transforms.hadamard import hadamard_dense
from passes.transforms.online import Permutation, Rotation, Transform
from passes.weights.rtn import round_to_nearest
from tests.commands import content
from tests.fixtures_lower import GOLDEN_FAMILIES, golden
from tests.made_up_states import calibration


def assert_equal(got: object, want: object, place: str = "block") -> None:
    """Equal types, values and bits, all the way down."""
    if isinstance(want, Mapping):
        assert isinstance(got, Mapping) and set(got) == set(want), place
        for key in want:
            assert_equal(got[key], want[key], f"{place}.{key}")
    elif isinstance(want, torch.Tensor):
        assert isinstance(got, torch.Tensor)
        assert (got.dtype, got.shape) == (want.dtype, want.shape), place
        assert torch.equal(got, want), place
    elif isinstance(want, tuple):
        assert isinstance(got, tuple) and len(got) == len(want), place
        for index, (one, other) in enumerate(zip(got, want, strict=True)):
            assert_equal(one, other, f"{place}[{index}]")
    elif is_dataclass(want):
        assert type(got) is type(want), place
        for each in fields(want):
            assert_equal(getattr(got, each.name), getattr(want, each.name), f"{place}.{each.name}")
    else:
        assert type(got) is type(want) and got == want, place


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def half(*shape: int, seed: int = 0) -> torch.Tensor:
    return random(*shape, seed=seed).half().float()


def order(count: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def keep(block: QuantizedBlock, folder: Path) -> QuantizedBlock:
    """The block as it comes back."""
    save(folder / "block-0000", block, {"passes": []})
    return load(folder / "block-0000")


FLOATS = {"attn_norm": 1 + random(64), "q_bias": random(48), "o": random(64, 48)}
GRIDS = st.builds(
    WeightGrid,
    bits=st.sampled_from([2, 4, 8]),
    group=st.sampled_from([None, 32, 48, 64, 128]),  # the last group of 100 inputs is narrower
    clip=st.booleans(),
) | st.builds(
    WeightGrid, bits=st.just(4), group=st.sampled_from([32, 48, 128]), levels=st.just(2)
)  # fmt: skip
TRANSFORMS: st.SearchStrategy[Transform] = st.sampled_from(
    [
        Rotation(left=hadamard_dense(4)),
        Rotation(right=hadamard_dense(16)),
        Rotation(left=hadamard_dense(4), right=random(25, 25)),
        Permutation(order(100)),
    ]
)
ACTIVATIONS = st.sampled_from(
    [
        ActivationGrid(8),
        ActivationGrid(4, clip=0.9),
        ActivationGrid(4, "group", 32),
        ActivationGrid(8, "tensor", scale=0.1),  # no binary fraction
        ActivationGrid(8, "tensor"),  # not yet calibrated
    ]
)
BITS = st.sampled_from([4, 8, 16])
ATTENTION = st.builds(
    AttentionGrid, BITS, BITS, BITS, BITS, st.sampled_from(["static", "row"]), st.booleans(),
    rotation=st.none() | st.just(hadamard_dense(16)),
    v_scale=st.none() | st.just(random(2, 16).abs()),
    v_zero=st.none() | st.just(random(2, 16).round()),
)  # fmt: skip
NAMES = st.sampled_from(["q", "k", "gate", "down"])
GROUPS = st.sampled_from(["attention input", "attention output", "mlp input", "mlp output"])


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(NAMES, GRIDS),
    st.dictionaries(GROUPS, st.lists(TRANSFORMS, max_size=3).map(tuple)),
    st.dictionaries(GROUPS, ACTIVATIONS),
    st.sets(NAMES),
    st.none() | ATTENTION,
)
def test_every_kind_of_content_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    grids: dict[str, WeightGrid],
    transforms: dict[str, tuple[Transform, ...]],
    activations: dict[str, ActivationGrid],
    corrected: set[str],
    attention: AttentionGrid | None,
) -> None:
    folder = tmp_path_factory.mktemp("block")
    linears = {
        name: round_to_nearest(random(6, 100, seed=seed), grid)
        for seed, (name, grid) in enumerate(grids.items())
    }
    low_rank = {n: LowRank(half(6, 3), half(3, 100, seed=1)) for n in corrected}
    block = QuantizedBlock(FLOATS, linears, transforms, activations, low_rank, attention)
    back = keep(block, folder / "once")
    assert_equal(back, block)
    assert_equal(back.layer(), block.layer())
    assert_equal(back.to("cpu"), block)
    keep(back, folder / "twice")
    assert content(folder / "once") == content(folder / "twice")


def test_linears_of_16_bits_stay_what_they_are(tmp_path: Path) -> None:
    block = QuantizedBlock({**FLOATS, "q": random(48, 64)})
    back = keep(block, tmp_path)
    assert_equal(back, block)
    assert not back.linears
    assert_equal(dict(back.layer().tensors), dict(block.floats))


REAL = {
    "w4a16-lorc": QuantOptions(rank=4),
    "w4a4-duquant+token": QuantOptions(),
    "w8a8-smoothquant+tensor": QuantOptions(p_scale="row"),
    "w4a8-quarot+tmas+cgq": QuantOptions(v_bits=16),
    "w4a4": QuantOptions(),
}


@torch.no_grad()
@pytest.mark.parametrize("family", GOLDEN_FAMILIES)
@pytest.mark.parametrize("name", REAL)
def test_a_block_that_was_read_runs_as_the_one_that_was_made(
    family: str, name: str, tmp_path: Path
) -> None:
    """So a build that goes on hands the next block the very inputs it would have had."""
    checkpoint = golden(family)
    recipe = make_recipe(name, checkpoint.spec, REAL[name], "fp32")
    model = FloatModel(turned(checkpoint, recipe))
    made: CalibratedBlock = open_block(
        model, 1, make_batches(model, calibration(checkpoint), Alone()), recipe, Alone()
    )
    run(recipe.blocks, made, lambda block: None)
    quantized = Quantized(tmp_path, 2)
    quantized.save(1, made.result(), [{"step": name, "stats": {"error": 0.1}}])
    assert_equal(quantized.block(1), made.result())
    assert quantized.passes(1) == [{"step": name, "stats": {"error": 0.1}}]
    hidden = random(2, 9, checkpoint.spec.width)
    context = make_context(checkpoint.spec, torch.arange(9) >= torch.tensor([[0], [4]]))
    ran = [
        run_block(checkpoint.spec, layer, hidden, context)
        for layer in (made.layer, quantized.block(1).layer())
    ]
    assert torch.equal(*ran)


def in_a_process_that_dies(write: Callable[[], None], syncs: int, replaced: bool) -> int:
    """Run `write` in a copy of this process; SIGKILL at its sync number `syncs`.

    Before the file is there, or, if `replaced`, right behind that. Returns the signal, 0: it ended.
    """
    child = os.fork()
    if child == 0:
        count, name = 0, "replace" if replaced else "fsync"
        real = getattr(os, name)

        def lethal(*argument: Any) -> None:
            nonlocal count
            real(*argument)
            count += 1
            if count == syncs:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(os, name, lethal)
        write()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status)


@pytest.mark.parametrize(
    ("syncs", "replaced", "finished"), [(1, False, 0), (1, True, 0), (2, False, 0), (2, True, 1)]
)
def test_a_killed_save_leaves_nothing_that_looks_finished(
    syncs: int, replaced: bool, finished: int, tmp_path: Path
) -> None:
    block = QuantizedBlock(FLOATS, {"q": round_to_nearest(random(8, 64), WeightGrid(4, 32))})
    quantized = Quantized(tmp_path, 1)
    killed = in_a_process_that_dies(lambda: quantized.save(0, block, []), syncs, replaced)
    assert killed == signal.SIGKILL
    assert quantized.count() == finished
    if finished:
        assert_equal(quantized.block(0), block)
    else:
        with pytest.raises(FileNotFoundError):
            quantized.block(0)
    quantized.save(0, block, [])
    assert quantized.count() == 1
    assert_equal(quantized.block(0), block)


def test_the_small_file_says_what_is_in_the_large_one(tmp_path: Path) -> None:
    linears = {"q": round_to_nearest(random(8, 64), WeightGrid(4, 32))}
    save(tmp_path / "block-0003", QuantizedBlock(FLOATS, linears), {"passes": [{"step": "Rtn()"}]})
    facts = json.loads((tmp_path / "block-0003.json").read_text())
    assert facts["linears"] == {"q": [4, 32]} and facts["passes"] == [{"step": "Rtn()"}]
    assert sorted(content(tmp_path)) == ["block-0003.json", "block-0003.safetensors"]
