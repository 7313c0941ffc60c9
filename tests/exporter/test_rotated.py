"""A model seen through rotations is the same model, and no tensor is whole that need not be."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import get_args

import pytest
import torch

from exporter.calibrated_block import CalibratedBlock
from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.families import Spec, block_shapes
from exporter.float_session import FloatModel
from exporter.layer import Layer
from exporter.prompts import encode_examples
from exporter.quant_options import QuantOptions
from exporter.recipes import make_recipe
from exporter.rotated import READS, WRITES, Rotated
from exporter.rounded import Rounded
from exporter.source import Source
from exporter.tasks import Reference, held_out_examples, held_out_tasks, reference_folder
from passes.activations.attention import AttentionGrid
from passes.base import Alone
from passes.transforms.quarot import (
    ResidualRotation,
    RotateDown,
    RotateHeads,
    RotateQueriesKeys,
)
from tests.fixtures_lower import GOLDEN_FAMILIES, golden, golden_variant

RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)
LENGTH = 16
ANSWER = 8  # last tokens that are masked
FINE = AttentionGrid(24, 24, 24, 24)  # grids as fine as fp32 itself: nothing is rounded


def everything_turned(source: Source) -> FloatModel:
    """All four rotations: of the residual stream, heads, the MLP's middle, queries and keys."""

    def layer(index: int) -> Layer:
        block = CalibratedBlock(
            source.spec, f"block {index}", source.block(index), [], Alone(), grid=FINE
        )
        steps = [step(block) for step in (RotateHeads(), RotateDown(), RotateQueriesKeys())]
        assert steps[2] == {"rotated": 1}
        assert set(block.transforms) == {"attention output", "mlp output"}
        return block.layer

    return FloatModel(source, layer=layer)


def texts(checkpoint: Checkpoint, reference: Reference | None = None) -> torch.Tensor:
    """Ids (4, LENGTH), of the held-out tasks where the model was trained on such."""
    if reference is None:
        draw = torch.Generator().manual_seed(0)
        return torch.randint(3, checkpoint.spec.vocab_size - 20, (4, LENGTH), generator=draw)
    tasks = islice(cycle(held_out_tasks(reference)), 4)
    examples = [held_out_examples(name, reference)[n] for n, name in enumerate(tasks)]
    prompts = encode_examples(checkpoint, examples)
    return torch.tensor([list(islice(cycle(ids), LENGTH)) for ids in prompts])


@torch.no_grad()
def check_function(checkpoint: Checkpoint, ids: torch.Tensor, seed: int = 0) -> None:
    """Logits of both rotated models are those of the plain one at every mask ratio, with padding.

    Relative to the largest logit of the row: sums over widths up to 768, one behind the other in a
    few blocks, leave 1e-6 in fp32; a rotation that is missing or not undone leaves 1.
    """
    rotated = Rotated(checkpoint, ResidualRotation(checkpoint.spec.width, seed))
    plain, models = FloatModel(checkpoint), (FloatModel(rotated), everything_turned(rotated))
    for ratio in RATIOS:
        masked = ids.clone()
        masked[:, LENGTH - int(ratio * ANSWER) :] = checkpoint.spec.mask_id
        valid = torch.arange(LENGTH) >= torch.tensor([[0], [1], [3], [7]])
        want = plain.logits(masked, valid)[valid]
        largest = want.abs().amax(-1, keepdim=True)
        for model in models:
            apart = (model.logits(masked, valid)[valid] - want).abs() / largest
            assert 0 < apart.max() < 1e-4, f"{ratio} masked"


@pytest.mark.parametrize("family", GOLDEN_FAMILIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_rotations_leave_the_function(family: str, seed: int) -> None:
    checkpoint = golden(family)
    check_function(checkpoint, texts(checkpoint), seed)


@pytest.mark.parametrize("name", get_args(Reference))
def test_rotations_leave_the_function_of_trained_models(name: Reference) -> None:
    checkpoint = open_checkpoint(reference_folder(name))
    check_function(checkpoint, texts(checkpoint, name))


@pytest.mark.parametrize(("family", "key"), [("llada", "weight_tying"),
                                             ("dream", "tie_word_embeddings")])  # fmt: skip
def test_a_tied_head_parts_from_the_embedding(family: str, key: str, tmp_path: Path) -> None:
    """The norm before the head goes into the head alone."""
    checkpoint = open_checkpoint(golden_variant(family, tmp_path / family, {key: True}))
    assert checkpoint.spec.tied
    check_function(checkpoint, texts(checkpoint))
    rotated = Rotated(checkpoint, ResidualRotation(checkpoint.spec.width))
    assert torch.equal(checkpoint.tensor("embed"), checkpoint.tensor("head"))
    assert not torch.allclose(rotated.tensor("embed"), rotated.tensor("head"))


def rotated_golden(family: str, seed: int = 0) -> Rotated:
    checkpoint = golden(family)
    return Rotated(checkpoint, ResidualRotation(checkpoint.spec.width, seed))


@pytest.mark.parametrize("family", GOLDEN_FAMILIES)
@pytest.mark.parametrize("name", ["embed", "head"])
@pytest.mark.parametrize("count", [1, 7, 4096])
def test_a_matrix_is_the_same_however_it_is_read(family: str, name: str, count: int) -> None:
    rotated = rotated_golden(family)
    whole, parts = rotated.tensor(name), list(rotated.rows(name, count))
    assert max(map(len, parts)) <= count
    assert torch.equal(torch.cat(parts), whole)
    ids = torch.tensor([[5, 3, 5], [0, len(whole) - 1, 77]])
    assert torch.equal(rotated.gather(name, ids), whole[ids])


@pytest.mark.parametrize("family", GOLDEN_FAMILIES)
def test_a_block_is_its_tensors_and_only_those_at_the_stream_are_turned(family: str) -> None:
    rotated = rotated_golden(family)
    for index in range(rotated.spec.layers):
        block, plain = rotated.block(index), rotated.inner.block(index)
        assert {n: t.shape for n, t in block.items()} == block_shapes(rotated.spec, index)
        for name, tensor in block.items():
            assert torch.equal(tensor, rotated.tensor(name, index))
            if name in ("attn_norm", "mlp_norm"):
                assert torch.equal(tensor, torch.ones_like(tensor))
            else:
                assert torch.equal(tensor, plain[name]) != (name in (*READS, *WRITES))
    assert torch.equal(rotated.tensor("final_norm"), torch.ones(rotated.spec.width))
    assert not torch.equal(rotated.tensor("embed"), rotated_golden(family, 1).tensor("embed"))


@dataclass(frozen=True)
class InParts:
    """A `Source` that never gives out embedding or head as a whole, nor more rows than asked."""

    inner: Source

    @property
    def spec(self) -> Spec:
        return self.inner.spec

    @property
    def folder(self) -> Path:
        return self.inner.folder

    @property
    def parameters(self) -> int:
        return self.inner.parameters

    def tensor(self, name: str, block: int | None = None, device: str = "cpu") -> torch.Tensor:
        assert name not in ("embed", "head"), f"all of `{name}` is in memory"
        return self.inner.tensor(name, block, device)

    def rows(self, name: str, count: int) -> Iterator[torch.Tensor]:
        assert name == "head"
        return self.inner.rows(name, 50)

    def gather(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        assert ids.numel() <= 4 * LENGTH
        return self.inner.gather(name, ids)

    def block(self, index: int, device: str = "cpu") -> dict[str, torch.Tensor]:
        return self.inner.block(index, device)


@torch.no_grad()
@pytest.mark.parametrize("family", GOLDEN_FAMILIES)
def test_a_forward_never_holds_a_whole_matrix_outside_the_blocks(family: str) -> None:
    checkpoint = golden(family)
    rotation = ResidualRotation(checkpoint.spec.width)
    recipe = make_recipe("w4a4-quarot", checkpoint.spec, QuantOptions(embed_bits=8), "fp32")
    ids, valid = texts(checkpoint), torch.ones(4, LENGTH, dtype=torch.bool)
    through = [
        FloatModel(Rounded(Rotated(source, rotation), recipe)).logits(ids, valid)
        for source in (checkpoint, InParts(checkpoint))
    ]
    # matrix products of other sizes may sum in another order
    torch.testing.assert_close(through[1], through[0], rtol=1e-5, atol=1e-5)
