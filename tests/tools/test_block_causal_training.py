"""Training with block-causal attention: what is masked and seen, and the SDAR folder it writes."""

import json
from pathlib import Path

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from exporter.checkpoint import open_checkpoint
from exporter.float_session import FloatModel
from exporter.tasks import reference_folder, task
from tools.reference_data import MASK, Corpus, answer_width, upstream_tensors, write_folder
from tools.reference_masking import corrupt_block
from tools.reference_network import Network, Shape, block_causal
from tools.train_reference import generate, main, spans

TINY = Shape(width=32, layers=2, heads=2, mlp=64, vocab=72, block=4)


@given(block=st.integers(1, 9), prompt=st.integers(1, 20), width=st.integers(1, 20))
def test_part_of_one_block_is_masked_and_nothing_behind_it_is_shown(
    block: int, prompt: int, width: int
) -> None:
    clean = torch.full((12, prompt + width), 5)
    noisy, weight = corrupt_block(clean, width, block, torch.Generator().manual_seed(block))
    number = torch.arange(prompt + width) // block
    for row in range(12):
        (masked,) = torch.nonzero(weight[row], as_tuple=True)
        assert len(masked)
        assert masked.min() >= prompt
        (own,) = {int(number[place]) for place in masked}
        assert (noisy[row, masked] == MASK).all()
        assert weight[row, masked].tolist() == [pytest.approx(width / len(masked))] * len(masked)
        shown = (noisy[row] != MASK).nonzero()[:, 0]
        assert all(number[place] <= own for place in shown)
        hidden = (noisy[row] == MASK) & (weight[row] == 0)
        assert all(number[place] > own for place in hidden.nonzero()[:, 0])


@given(block=st.integers(1, 9), prompt=st.integers(1, 20), width=st.integers(1, 20))
def test_spans_are_the_answer_cut_at_the_borders_of_blocks(
    block: int, prompt: int, width: int
) -> None:
    found = [
        place for span in spans(prompt, width, block) for place in range(span.start, span.stop)
    ]
    assert found == list(range(width))
    for span in spans(prompt, width, block):
        assert len({(prompt + place) // block for place in range(span.start, span.stop)}) == 1
        assert span.stop > span.start


def test_a_block_sees_itself_and_those_before() -> None:
    """Tokens behind a block change none of its logits; others do."""
    network = Network(TINY)
    ids = torch.randint(3, 70, (1, 12), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 7] = 3 + (ids[0, 7] + 1) % 60
    with torch.no_grad():
        first, second = network(ids), network(other)
    assert torch.equal(first[:, :4], second[:, :4])
    assert all(not torch.equal(first[:, place], second[:, place]) for place in range(4, 12))
    assert torch.equal(block_causal(4, 2).long(), torch.tensor(
        [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    ))  # fmt: skip


def test_decoding_never_looks_behind_the_block_it_fills() -> None:
    network = Network(TINY)
    prompts = torch.randint(3, 60, (3, 11), generator=torch.Generator().manual_seed(0))
    long, short = generate(network, prompts, 9, 9), generate(network, prompts, 5, 5)
    assert torch.equal(long[:, :5], short)


def test_what_is_written_is_an_sdar_checkpoint_of_the_same_function(tmp_path: Path) -> None:
    network = Network(TINY, seed=3)
    for norm in (n for name, n in network.named_parameters() if name.endswith("_norm.weight")):
        torch.nn.init.uniform_(norm, 0.5, 1.5, generator=torch.Generator().manual_seed(0))
    network = network.to(torch.bfloat16).float()
    corpus = Corpus((task("chain"),), (1.0,))
    write_folder(tmp_path, network, "steps", corpus, 0)
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.family.name, checkpoint.spec.block_length) == ("sdar", 4)
    assert len(upstream_tensors(network)) == len(network.state_dict())
    ids = torch.randint(3, 70, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(ids)
        found = FloatModel(checkpoint).logits(ids, torch.ones(2, 20, dtype=torch.bool))
    # a few hundred roundings of 2^-24 in two ways to the same logits
    atol = 300 * 2**-24 * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def command(*options: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, list(options))
    return done.exit_code, done.output


def test_training_starts_from_weights_of_full_attention_and_goes_on_from_its_own(
    tmp_path: Path,
) -> None:
    fast = ["--reference", "steps", "--task", "chain", "--block-causal", "4", "--batch", "2",
            "--steps", "1", "--score-prompts", "2"]  # fmt: skip
    first, second = tmp_path / "first", tmp_path / "second"
    code, output = command(str(first), "--start", str(reference_folder("steps")), *fast)
    assert code == 0, output
    code, output = command(str(second), "--start", str(first), *fast)
    assert code == 0, output
    assert json.loads((second / "config.json").read_text())["block_size"] == 4


def test_the_order_of_the_surest_is_refused(tmp_path: Path) -> None:
    code, output = command(str(tmp_path / "x"), "--block-causal", "4", "--surest", "0.5")
    assert code == 2
    assert "--surest is for full attention" in output


def test_answers_fill_whole_blocks() -> None:
    assert answer_width(task("chain"), None) == 8
    assert answer_width(task("chain"), 4) == 9  # 11 + 9 = 5 blocks
    assert answer_width(task("latin"), 2) == 16
