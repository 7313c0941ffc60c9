"""What the simulation computes with outside of the blocks is what the weights file holds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.decoding import describe_model, loop_facts
from exporter.lower import write_weights
from exporter.progress import Progress
from exporter.prompts import used_vocabulary
from exporter.quant_options import QuantOptions
from exporter.recipes import Recipe, Storage, make_recipe
from exporter.rounded import Rounded
from exporter.simulate import turned
from exporter.source import Source
from exporter.tasks import reference_folder
from exporter.weights_file import Stored
from tests.fixtures_lower import CANVAS, GOLDEN_FAMILIES, golden, golden_variant

OUTER = ("embed", "head", "final_norm")


def lowered(checkpoint: Checkpoint, source: Source, recipe: Recipe, folder: Path) -> Stored:
    described = describe_model(checkpoint, "0" * 64, used_vocabulary(checkpoint), CANVAS)
    return write_weights(source, None, recipe, loop_facts(described), folder, Progress())


def stored_value(stored: Stored, name: str) -> torch.Tensor:
    """A tensor of the file as a graph takes it, (rows, D) or (D,): codes times their scales."""
    read = {
        key: torch.from_numpy(tensor.numpy().astype(np.float32))
        for key, tensor in stored.tensors.items()
        if key.partition(".")[0] == name
    }
    value = read[name]
    if name == "embed" and "embed.scale" in read:
        return value * read["embed.scale"]
    if name != "head":
        return value
    if "head.scale" in read:  # (D / group, V)
        value = value * read["head.scale"].repeat_interleave(stored.groups["head"], 0)
    return value.T


def check(checkpoint: Checkpoint, recipe: Recipe, folder: Path) -> None:
    """Whatever way `Rounded` is read, its values are those of the file, bit for bit."""
    source = turned(checkpoint, recipe)
    stored = lowered(checkpoint, source, recipe, folder)
    rounded = Rounded(source, recipe)
    for name in OUTER:
        want = stored_value(stored, name)
        assert torch.equal(rounded.tensor(name), want), name
    for name in ("embed", "head"):
        want = stored_value(stored, name)
        assert torch.equal(torch.cat(list(rounded.rows(name, 50))), want), name
        ids = torch.tensor([[7, 3, 7], [0, len(want) - 1, 60]])
        assert torch.equal(rounded.gather(name, ids), want[ids]), name


def changed_by(recipe: Recipe, name: str) -> bool:
    bits = {"embed": recipe.embed_bits, "head": recipe.head_bits}.get(name, 16)
    kind = recipe.storage if name == "embed" else recipe.compute
    return bits < 16 or kind == "fp16"


@pytest.mark.parametrize("family", GOLDEN_FAMILIES)
@pytest.mark.parametrize("compute", ["fp32", "fp16"])
@pytest.mark.parametrize("head_bits", [4, 8, 16])
@pytest.mark.parametrize("embed_bits", [8, 16])
@pytest.mark.parametrize("name", ["w4a16-rtn", "w4a4-quarot"])
def test_values_are_those_of_the_weights_file(
    family: str, name: str, compute: Storage, head_bits: int, embed_bits: int, tmp_path: Path
) -> None:
    checkpoint = golden(family)
    options = QuantOptions(head_bits=head_bits, embed_bits=embed_bits)
    recipe = make_recipe(name, checkpoint.spec, options, compute)
    assert (recipe.head_bits, recipe.embed_bits) == (head_bits, embed_bits)
    check(checkpoint, recipe, tmp_path)


@pytest.mark.parametrize("family", GOLDEN_FAMILIES)
@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_float_recipes_store_floats(family: str, name: str, tmp_path: Path) -> None:
    checkpoint = golden(family)
    recipe = make_recipe(name, checkpoint.spec, QuantOptions(), "fp32")
    check(checkpoint, recipe, tmp_path)
    for outer in OUTER:
        plain = checkpoint.tensor(outer)
        want = plain.half().float() if name == "fp16" else plain
        assert torch.equal(Rounded(checkpoint, recipe).tensor(outer), want)


def test_groups_of_a_wide_head_and_a_tied_one(tmp_path: Path) -> None:
    """192 channels are three groups; a tied head is rounded apart from the embedding."""
    wide = open_checkpoint(reference_folder())
    recipe = make_recipe("w8a8", wide.spec, QuantOptions(embed_bits=8), "fp32")
    assert recipe.head_group == 64
    (tmp_path / "wide").mkdir()
    check(wide, recipe, tmp_path / "wide")
    tied = open_checkpoint(golden_variant("llada", tmp_path / "model", {"weight_tying": True}))
    recipe = make_recipe("w4a16-quarot", tied.spec, QuantOptions(), "fp32")
    (tmp_path / "tied").mkdir()
    check(tied, recipe, tmp_path / "tied")


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([4, 8, 16]), st.sampled_from([8, 16]), st.integers(1, 300))
def test_slices_make_no_difference_and_blocks_stay(head: int, embed: int, count: int) -> None:
    checkpoint = golden("llada")
    options = QuantOptions(head_bits=head, embed_bits=embed)
    recipe = make_recipe("w4a16-rtn", checkpoint.spec, options, "fp32")
    rounded = Rounded(checkpoint, recipe)
    for name in ("embed", "head"):
        whole = rounded.tensor(name)
        assert torch.equal(torch.cat(list(rounded.rows(name, count))), whole)
        assert torch.equal(whole, checkpoint.tensor(name)) != changed_by(recipe, name)
    for name, tensor in rounded.block(1).items():
        assert torch.equal(tensor, checkpoint.tensor(name, 1))
        assert torch.equal(tensor, rounded.tensor(name, 1))
