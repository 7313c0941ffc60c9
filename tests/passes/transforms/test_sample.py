"""The sample of calibration tokens."""

import torch

from passes.base import Team
from passes.transforms.sample import sample_tokens
from tests.thread_team import run_as_team
from tests.toy_block import ToyBlock


def test_a_sample_of_all_tokens_is_all_of_them() -> None:
    block = ToyBlock(weigh=True, padding=float("nan"))
    x, w = sample_tokens(block, block.groups[2], 1000)
    batches = list(block.inputs(block.groups[2]))
    assert torch.equal(x, torch.cat([x[w != 0] for x, w in batches]))
    assert torch.equal(w, torch.cat([w[w != 0] for _, w in batches]))


def test_a_small_sample_comes_from_all_batches_and_repeats() -> None:
    block = ToyBlock(padding=float("nan"))
    x, w = sample_tokens(block, block.groups[0], 60)
    assert (x.shape, w.shape) == ((60, 40), (60,))
    whole = torch.cat([x[w != 0] for x, w in block.inputs(block.groups[0])])
    places = (x[:, None] == whole).all(-1).float().argmax(1)
    assert torch.equal(whole[places], x)
    assert (places.diff() > 0).all(), "tokens keep their order, and none is taken twice"
    # 20 of each batch of 50 are expected, with a deviation of 60/150 * sqrt(50 * .6 / .4) = 2.8
    assert (places.div(50, rounding_mode="floor").bincount() > 20 - 4 * 2.8).all()
    assert torch.equal(sample_tokens(block, block.groups[0], 60)[0], x)


def test_a_team_shares_the_sample_out() -> None:
    def sample(team: Team) -> torch.Tensor:
        block = ToyBlock(team=team)
        return sample_tokens(block, block.groups[0], 61)[0]

    parts = run_as_team(2, sample)
    assert [len(part) for part in parts] == [30, 31]
    whole = torch.cat([x[w != 0] for x, w in ToyBlock().inputs(ToyBlock().groups[0])])
    for part in parts:
        assert ((part[:, None] == whole).all(-1).sum(1) == 1).all()


def test_a_process_without_batches_has_no_tokens() -> None:
    sizes = run_as_team(
        5, lambda team: sample_tokens(ToyBlock(team=team), ToyBlock().groups[0], 100)[0].shape
    )
    assert sizes == [(20, 40)] * 3 + [(0, 40)] * 2
