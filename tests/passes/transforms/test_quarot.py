"""QuaRot: each rotation leaves the function as it is and flattens what is to be rounded."""

import pytest
import torch
from torch import Tensor

from passes.activations.attention import AttentionGrid
from passes.transforms.hadamard import hadamard, hadamard_dense
from passes.transforms.quarot import ResidualRotation, RotateDown, RotateHeads, RotateQueriesKeys
from tests.toy_block import GROUPS, ToyBatch, ToyBlock, outputs_of, rounding_bound

KV_HEADS = pytest.mark.parametrize("kv_heads", [1, 2, 4])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def valid_inputs(block: ToyBlock, index: int) -> Tensor:
    return torch.cat([x[w != 0] for x, w in block.inputs(block.groups[index])])


def crest(x: Tensor) -> float:
    """The mean over tokens of the largest entry over the root mean square."""
    return float((x.abs().amax(1) / x.square().mean(1).sqrt()).mean())


@pytest.mark.parametrize("width", [40, 43, 64, 576])
def test_the_residual_rotation_is_orthogonal(width: int) -> None:
    turned = ResidualRotation(width, seed=3).rotate_rows(torch.eye(width))
    # entries of at most sqrt(2 / n) in fp32, n products in each dot product of two rows
    product = turned.double() @ turned.double().T
    assert (product - torch.eye(width)).abs().max() <= 2 * 2 * 2**-24
    h = normal(5, width)
    rotated = ResidualRotation(width, seed=3).rotate_rows(h)
    assert torch.allclose(rotated.norm(dim=1), h.norm(dim=1), rtol=1e-6)


def test_readers_read_what_writers_write() -> None:
    rotation, gain = ResidualRotation(40), torch.linspace(0.5, 8, 40)
    h, reader, writer = normal(7, 40), normal(9, 40, seed=1), normal(40, 6, seed=2)
    read = rotation.rotate_rows(h) @ rotation.rotate_input(reader, gain).T
    # 40 products of operands that are off by 2^-24 each, by Cauchy and Schwarz
    bound = 45 * 2**-24 * h.norm(dim=1)[:, None] * (reader * gain).norm(dim=1)
    assert ((read - (h * gain) @ reader.T).abs() <= bound).all()
    y = normal(3, 6, seed=4)
    written = y @ rotation.rotate_output(writer).T
    bound = 45 * 2**-24 * y.norm(dim=1)[:, None] * torch.linalg.matrix_norm(writer)
    assert ((written - rotation.rotate_rows(y @ writer.T)).abs() <= bound).all()
    bias = normal(40, seed=5)
    assert torch.equal(rotation.rotate_rows(bias), rotation.rotate_rows(bias[None])[0])


@KV_HEADS
@pytest.mark.parametrize("seed", [0, 1])
def test_a_block_in_a_turned_stream_is_the_block_turned(kv_heads: int, seed: int) -> None:
    block = ToyBlock(kv_heads=kv_heads, biases=True)
    before, bound = outputs_of(block), rounding_bound(block)
    rotation = ResidualRotation(40, seed)
    for norm, readers, writer in (("attn_norm", "q k v", "o"), ("mlp_norm", "gate up", "down")):
        gain = block.tensors[norm]
        for name in readers.split():
            block.set(name, rotation.rotate_input(block.weight(name), gain))
        block.set(norm, torch.ones(40))
        block.set(writer, rotation.rotate_output(block.weight(writer)))
    block.batches = [
        ToyBatch(rotation.rotate_rows(batch.hidden), batch.valid, batch.weights)
        for batch in block.batches
    ]
    moved = (outputs_of(block) - rotation.rotate_rows(before)).abs().max()
    assert moved <= 2 * bound  # the stream is turned too


def test_the_seed_decides_the_signs() -> None:
    rows = normal(4, 40)
    turned = [ResidualRotation(40, seed).rotate_rows(rows) for seed in (0, 0, 1)]
    assert torch.equal(turned[0], turned[1])
    assert not torch.equal(turned[0], turned[2])


def test_an_outlier_channel_of_the_stream_disappears() -> None:
    h = normal(100, 64)
    h[:, 11] *= 50
    turned = ResidualRotation(64).rotate_rows(h)
    # one channel holds nearly all of it: then all 64 are about equal
    assert crest(h) > 7
    assert crest(turned) < 2


@KV_HEADS
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_heads_and_down_leave_the_function(kv_heads: int, biases: bool, seed: int) -> None:
    """At several states: each seed draws other tokens behind other paddings."""
    for step in (RotateHeads(), RotateDown()):
        block = ToyBlock(kv_heads=kv_heads, biases=biases, seed=seed)
        before, bound = outputs_of(block), rounding_bound(block)
        step(block)
        assert (outputs_of(block) - before).abs().max() <= bound


@KV_HEADS
def test_heads_turn_the_projection_s_input_by_one_hadamard_matrix(kv_heads: int) -> None:
    block = ToyBlock(kv_heads=kv_heads, biases=True)
    before = valid_inputs(block, 1)
    assert RotateHeads()(block) == {"channels": 32}
    whole = torch.kron(hadamard_dense(4), hadamard_dense(8))
    # 30 tokens, 40 channels and 32 channels are summed over on the way: 110 roundings
    bound = 110 * 2**-24 * before.abs().max() * 32**0.5
    assert (valid_inputs(block, 1) - before @ whole).abs().max() <= bound
    assert [name for name, steps in block.steps.items() if steps] == ["attention output"]


def test_values_are_turned_where_a_cache_would_hold_them() -> None:
    plain, turned = ToyBlock(biases=True), ToyBlock(biases=True)
    RotateHeads()(turned)
    for (_, v, _), (_, rotated, _) in zip(plain.operands(), turned.operands(), strict=True):
        bound = 50 * 2**-24 * 3 * v.abs().max()  # 40 + 8 products, sums up to sqrt(8) entries
        assert ((rotated - v @ hadamard_dense(8)).abs() <= bound).all()


def test_down_is_turned_over_all_its_channels() -> None:
    block = ToyBlock()
    before = valid_inputs(block, 3)
    assert RotateDown()(block) == {"channels": 48, "cost": 16}
    assert torch.equal(valid_inputs(block, 3), hadamard(48)(before))
    assert crest(valid_inputs(block, 3)) < crest(before)
    assert [name for name, steps in block.steps.items() if steps] == ["mlp output"]


@KV_HEADS
def test_queries_and_keys_are_turned_where_they_are_rounded(kv_heads: int) -> None:
    block = ToyBlock(kv_heads=kv_heads)
    before, bound = outputs_of(block), rounding_bound(block)
    assert RotateQueriesKeys()(block) == {"rotated": 0}
    for floats in (AttentionGrid(v_bits=8, p_bits=8), AttentionGrid()):
        block.quantize_attention(floats)
        assert RotateQueriesKeys()(block) == {"rotated": 0}
        assert block.attention() is floats
    block.quantize_attention(AttentionGrid(k_bits=4, v_bits=8, key_mean=False))
    assert RotateQueriesKeys()(block) == {"rotated": 1}
    grid = block.attention()
    assert grid is not None
    assert (grid.k_bits, grid.v_bits, grid.key_mean) == (4, 8, False)
    block.quantize_attention(AttentionGrid(rotation=grid.rotation))
    assert (outputs_of(block) - before).abs().max() <= bound


def test_rotation_makes_keys_with_an_outlier_easier_to_round() -> None:
    def error(rotate: bool) -> float:
        block = ToyBlock()
        weight = block.weight("k").clone()
        weight[[2, 11]] *= 12  # one channel of each head
        block.set("k", weight)
        exact = outputs_of(block)
        block.quantize_attention(AttentionGrid(k_bits=4))
        if rotate:
            RotateQueriesKeys()(block)
        return float((outputs_of(block) - exact).square().mean())

    assert error(rotate=True) < error(rotate=False)


def test_the_rotations_name_no_group_of_their_own() -> None:
    """They go by what makes the input."""
    block = ToyBlock()
    assert [group.source for group in GROUPS] == ["attn_norm", "v", "mlp_norm", "up"]
    block.groups = block.groups[:1] + block.groups[2:]
    with pytest.raises(ValueError, match="reads what `v` makes"):
        RotateHeads()(block)
