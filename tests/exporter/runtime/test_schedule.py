"""Quotas add up, the float32 schedule has torch's bits, blocks part the canvas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.runtime.schedule import (
    block_steps,
    blocks,
    dream_quota,
    dream_shares,
    dream_times,
    even_block_steps,
    even_split,
)
from exporter.runtime.settings import Settings


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 40)), min_size=1, max_size=4))
def test_even_split_adds_up_and_never_rises(rows: list[tuple[int, int]]) -> None:
    masks, steps = np.asarray(rows).T
    split = even_split(masks, steps)
    assert split.sum(1).tolist() == masks.tolist()
    assert (np.diff(split, axis=1) <= 0).all()
    for row, count in zip(split, steps, strict=True):
        assert row[0] - row[count - 1] <= 1
        assert not row[count:].any()


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="without AVX2 torch rounds the product and the sum apart",
)
@pytest.mark.parametrize("eps", [1e-3, 1e-5, 0.1])
def test_times_are_torch_linspace(eps: float) -> None:
    for steps in range(1, 513):
        want = torch.linspace(1, eps, steps + 1).numpy()
        assert np.array_equal(dream_times(steps, eps), want), steps


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="other times, see above"
)
@pytest.mark.parametrize("steps", [1, 2, 7, 24, 32, 128, 512])
def test_dream_quota_is_the_torch_expression(steps: int) -> None:
    times = torch.linspace(1, 1e-3, steps + 1)
    masks = torch.arange(513).float()
    for i in range(steps):
        share = 1 - times[i + 1] / times[i] if i < steps - 1 else torch.tensor(1.0)
        got = dream_quota(np.arange(513), dream_shares(np.asarray([steps]), 1e-3)[0, i])
        assert np.array_equal(got, (masks * share).int().numpy())


@settings(deadline=None)
@given(
    st.integers(1, 6).flatmap(
        lambda size: st.tuples(
            st.just(size),
            st.integers(0, 4),
            st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=3),
        )
    )
)
def test_blocks_part_the_masks(drawn: tuple[int, int, list[list[bool]]]) -> None:
    size, count, prompt = drawn
    settings = Settings(gen_length=size * count, block_length=size)
    masked = np.pad(np.asarray(prompt), ((0, 0), (0, size * count)), constant_values=True)
    found = blocks(masked, 9, settings)
    covered = np.zeros(masked.shape, int)
    for block in found:
        assert np.array_equal((block.members & masked).sum(1), block.size)
        assert block.size.max() <= size
        covered += block.members & masked
    assert np.array_equal(covered, masked)
    assert len(found) == count + -(-np.asarray(prompt).sum(1).max() // size)


def test_steps_of_a_block_keep_the_rate_of_the_generated_region() -> None:
    masked = np.asarray([[True] * 5 + [True] * 16])
    settings = Settings(gen_length=16, block_length=8, steps=8)  # two tokens a call
    found = blocks(masked, 5, settings)
    five = np.asarray([5])
    assert [block_steps(b, five, settings)[0] for b in found] == [3, 4, 4]
    alone = Settings(gen_length=0, block_length=2, steps=5)
    assert [block_steps(b, five, alone)[0] for b in blocks(masked[:, :5], 5, alone)] == [2, 2, 1]


@settings(deadline=None)
@given(
    st.integers(1, 5),
    st.lists(
        st.tuples(st.integers(0, 4), st.lists(st.booleans(), max_size=9), st.integers(0, 9)),
        min_size=1,
        max_size=3,
    ),
)
def test_causal_blocks_count_from_the_first_token_of_each_row(
    size: int, rows: list[tuple[int, list[bool], int]]
) -> None:
    """Each row is padding, a prompt with blanks, and masks up to a whole block."""
    drawn = [(pad, [*prompt, *[True] * answer]) for pad, prompt, answer in rows]
    ends = [pad + -(-len(masks) // size) * size for pad, masks in drawn]
    masked = np.zeros((len(rows), max(*ends, 1)), bool)
    key_mask = masked.copy()
    for row, ((pad, masks), end) in enumerate(zip(drawn, ends, strict=True)):
        masked[row, pad : pad + len(masks)] = masks
        masked[row, pad + len(masks) : end] = True
        key_mask[row, pad:end] = True
    found = blocks(masked, 0, Settings(gen_length=1), (key_mask, size))
    covered = np.zeros(masked.shape, int)
    for number, block in enumerate(found):
        covered += block.members
        assert np.array_equal((block.members & masked).sum(1), block.size)
        for row, (pad, _) in enumerate(drawn):
            places = np.flatnonzero(block.members[row])
            assert len(places) in (0, size)
            if len(places):
                first = np.flatnonzero(masked[row])[0]
                assert places[0] == pad + ((first - pad) // size + number) * size
    assert (covered[masked] == 1).all()


def test_steps_of_sdar_and_llada2_are_for_a_block() -> None:
    assert even_block_steps(8, Settings(sampler="sdar-static", steps=3)) == 3
    assert even_block_steps(8, Settings(sampler="sdar-static")) == 8
    few = Settings(sampler="llada2-threshold", gen_length=32, minimal_topk=8)
    assert even_block_steps(8, few) == 4
    assert even_block_steps(8, Settings(sampler="sdar-static", gen_length=32, minimal_topk=8)) == 8
