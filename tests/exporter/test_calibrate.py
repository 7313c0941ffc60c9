"""Calibration states are those of the deployed loop, scored by the float model."""

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter.calibrate import batch_states, calibrate, roll_out
from exporter.decoding import describe_model, loop_facts
from exporter.float_session import TOKENS_AT_ONCE, FloatModel, FloatSession
from exporter.progress import Progress
from exporter.prompts import Prompts
from exporter.quant_options import QuantOptions
from exporter.recipes import Recipe, make_recipe
from exporter.runtime.loop import decode
from exporter.runtime.settings import Settings
from exporter.runtime.task import make_canvas
from exporter.work import open_work
from passes.base import Alone
from passes.calibrate.cgq import VisibleScore
from passes.calibrate.states import CalibrationSet, State
from tests.commands import changed
from tests.exporter.conftest import Golden
from tests.fixtures_lower import golden as open_golden

BLOCKS = Settings(gen_length=12, steps=6, block_length=6, early_stop=False)
THRESHOLD = replace(BLOCKS, sampler="threshold", threshold=0.5, steps=None)
CANVAS = replace(BLOCKS, sampler="entropy", steps=5)
PROMPTS = ((3, 5, 8, 13), (21, 34), (1, 1, 2, 3, 5, 8, 13))
ASKED = Prompts(PROMPTS, (None,) * 3, (), "made up")
# A logit in fp32 is off by up to 8e-5 (measured for the golden models), a log-odds by twice that,
# two of them differ by twice that again, and p by a quarter.
SAME_P = 8e-5


def states_by_prompt(pool: list[State]) -> dict[int, list[State]]:
    found: dict[int, list[State]] = defaultdict(list)
    for state in pool:
        found[state.prompt].append(state)
    return found


def recipe_of(golden: Golden, name: str = "w4a16", **options: Any) -> Recipe:
    quant = replace(QuantOptions(samples=9), **options)
    return make_recipe(name, golden.checkpoint.spec, quant, "fp32")


def run(golden: Golden, recipe: Recipe, folder: Path) -> CalibrationSet | None:
    with open_work(folder) as work:
        return calibrate(
            golden.model, "digest", golden.facts, BLOCKS, ASKED, recipe, Alone(), work,
            Progress(),
        )  # fmt: skip


def calibrated(golden: Golden, folder: Path, **options: Any) -> CalibrationSet:
    found = run(golden, recipe_of(golden, **options), folder)
    assert found is not None
    return found


@pytest.mark.parametrize("settings", [BLOCKS, THRESHOLD, CANVAS], ids=lambda s: s.sampler)
def test_states_are_those_of_each_prompt_decoded_alone(golden: Golden, settings: Settings) -> None:
    """Decoding in lockstep, padded, changes nothing: not a state, not a step, not a score."""
    pool = roll_out(golden.model, golden.facts, settings, ASKED, Alone(), Progress())
    session = FloatSession(golden.model, golden.facts.vocab_size)
    for number, states in states_by_prompt(pool).items():
        canvas, length, key_mask = make_canvas(
            [list(PROMPTS[number])], settings.gen_length, golden.facts
        )
        surety = torch.ones(canvas.shape[1])
        alone = decode(session, golden.facts, settings, canvas, length, key_mask)
        *visited, end = states
        for index, (state, step) in enumerate(zip(visited, alone, strict=True)):
            valid = state.valid
            assert state.ids[valid].tolist() == step.canvas_before[0].tolist()
            assert (state.step, state.block) == (index, step.block)
            assert state.commit_score is not None
            torch.testing.assert_close(state.commit_score[valid], surety, rtol=0, atol=SAME_P)
            for _, position, _ in step.commits:
                rest = step.reductions["rest"][0, step.window.tolist().index(position)]
                surety[position] = 1 / (1 + float(rest))
        assert end.finished and not any(state.finished for state in visited)
        assert end.ids[end.valid].tolist() == canvas[0].tolist()
        assert end.commit_score is not None
        torch.testing.assert_close(end.commit_score[end.valid], surety, rtol=0, atol=SAME_P)


@pytest.mark.parametrize("settings", [BLOCKS, THRESHOLD, CANVAS], ids=lambda s: s.sampler)
def test_masks_fall_and_tokens_stay(golden: Golden, settings: Settings) -> None:
    pool = roll_out(golden.model, golden.facts, settings, ASKED, Alone(), Progress())
    longest = max(map(len, PROMPTS))
    by_prompt = states_by_prompt(pool)
    assert sorted(by_prompt) == [0, 1, 2]
    for number, states in by_prompt.items():
        assert states[0].mask_ratio == 1
        assert int((~states[0].valid).sum()) == longest - len(PROMPTS[number])
        for state in states:
            assert torch.equal(state.is_mask, state.ids == golden.facts.mask_id)
            assert state.mask_ratio == int(state.is_mask.sum()) / settings.gen_length
            assert (state.ids[~state.valid] == golden.facts.pad_id).all()
            assert state.ids[state.valid][: len(PROMPTS[number])].tolist() == list(PROMPTS[number])
        for before, after in pairwise(states):
            assert after.step > before.step and after.block >= before.block
            assert after.mask_ratio < before.mask_ratio
            assert not (after.is_mask & ~before.is_mask).any()
            assert torch.equal(after.ids[~before.is_mask], before.ids[~before.is_mask])
            assert before.commit_score is not None and after.commit_score is not None
            seen = ~before.is_mask
            assert torch.equal(after.commit_score[seen], before.commit_score[seen])
            fresh = after.commit_score[before.is_mask & ~after.is_mask]
            assert ((fresh > 0) & (fresh <= 1)).all()


@pytest.mark.parametrize("sampler", ["sdar-dynamic", "llada2-edit"])
def test_block_causal_states_hide_what_is_not_fed(sampler: str) -> None:
    """In lockstep as alone a state ends with its block, and mask ratios are about that block."""
    checkpoint = open_golden("sdar")
    facts = loop_facts(describe_model(checkpoint, "", checkpoint.spec.vocab_size, 64))
    settings = Settings(
        sampler, "exact", 10, threshold=0.5, block_length=4, early_stop=False,
        editing_threshold=0.5, max_post_steps=2,
    )  # fmt: skip
    model = FloatModel(checkpoint)
    pool = roll_out(model, facts, settings, ASKED, Alone(), Progress())
    session = FloatSession(model, facts.vocab_size)
    for number, states in states_by_prompt(pool).items():
        start = make_canvas([list(PROMPTS[number])], settings.gen_length, facts)
        *visited, end = states
        steps = [s for s in decode(session, facts, settings, *start) if s.commits or s.edits]
        for state, step in zip(visited, steps, strict=True):
            seen = step.canvas_before[0, : step.stop]
            assert state.ids[state.valid].tolist() == seen.tolist()
            assert torch.equal(state.is_mask, state.valid & (state.ids == facts.mask_id))
            own = seen[max(step.stop - 4, len(PROMPTS[number])) :]
            assert state.mask_ratio == (own == facts.mask_id).mean()
        assert end.ids[end.valid].tolist() == start[0][0].tolist()


@pytest.mark.parametrize("states", ["mcs", "clean"])
def test_finished_sequences_can_be_calibrated_on(
    golden: Golden, tmp_path: Path, states: str
) -> None:
    """Clean text shows no mask; masked anew, all mask ratios; prompts are never masked."""
    found = run(golden, recipe_of(golden, f"w4a16-gptq+{states}"), tmp_path)
    assert found is not None and len(found.states) == (9 if states == "mcs" else len(PROMPTS))
    assert any(state.is_mask.any() for state in found.states) == (states == "mcs")
    for state in found.states:
        prompt = PROMPTS[state.prompt]
        assert state.ids[state.valid][: len(prompt)].tolist() == list(prompt)
        assert state.score is not None


def test_scores_are_the_softmax_of_the_logits(golden: Golden, tmp_path: Path) -> None:
    """Shifted for Dream; the mask id never counts, though its raw logit may be the largest."""
    for state in calibrated(golden, tmp_path).states:
        logits = golden.model.logits(state.ids[None], state.valid[None])[0].double()
        if golden.facts.shift:
            logits = torch.cat((logits[:1], logits[:-1]))
        logits[:, golden.facts.mask_id] = -torch.inf
        p = logits.softmax(-1)
        held = p.gather(1, state.ids[:, None])[:, 0]
        expected = torch.where(state.is_mask, p.amax(-1), held).float()
        assert state.score is not None
        torch.testing.assert_close(
            state.score[state.valid], expected[state.valid], rtol=0, atol=SAME_P
        )


def test_padding_rows_of_the_head_take_no_probability(llada: Golden, tmp_path: Path) -> None:
    """With ids from 190 on unused, nothing of the mass goes there."""
    small = replace(llada, facts=replace(llada.facts, vocab_size=190))
    for state in calibrated(small, tmp_path, samples=2).states:
        logits = llada.model.logits(state.ids[None], state.valid[None])[0, :, :190].double()
        best = logits.softmax(-1).amax(-1).float()
        assert state.score is not None
        at = state.is_mask
        torch.testing.assert_close(state.score[at], best[at], rtol=0, atol=SAME_P)


@pytest.mark.parametrize("rule", ["model", "commit", "zero"])
def test_padding_weighs_nothing_and_all_else_something(
    llada: Golden, tmp_path: Path, rule: VisibleScore
) -> None:
    found = calibrated(llada, tmp_path, visible_score=rule)
    assert any(not state.valid.all() for state in found.states)
    for state, weight in zip(found.states, found.weights, strict=True):
        assert (weight[~state.valid] == 0).all()
        assert (weight[state.valid] > 0).all()


def test_without_cgq_all_tokens_weigh_one(llada: Golden, tmp_path: Path) -> None:
    found = run(llada, recipe_of(llada, "w4a16-gptq"), tmp_path)
    assert found is not None
    for state, weight in zip(found.states, found.weights, strict=True):
        assert torch.equal(weight, state.valid.float())


@pytest.mark.parametrize("name", ["fp32", "fp16", "w4a16-rtn"])
def test_recipes_without_data_calibrate_nothing(llada: Golden, tmp_path: Path, name: str) -> None:
    assert run(llada, recipe_of(llada, name), tmp_path) is None


def test_a_calibration_set_is_read_as_it_was_made(golden: Golden, tmp_path: Path) -> None:
    made = calibrated(golden, tmp_path)
    times = changed(tmp_path)
    read = calibrated(golden, tmp_path)
    assert changed(tmp_path) | {"lock": 0} == times | {"lock": 0}  # nothing was made again
    assert (read.provenance, read.counts) == (made.provenance, made.counts)
    for ours, theirs in zip(read.states, made.states, strict=True):
        assert vars(ours).keys() == vars(theirs).keys()
        for name, value in vars(theirs).items():
            again = getattr(ours, name)
            same = torch.equal(again, value) if torch.is_tensor(value) else again == value
            assert same, name
    assert all(map(torch.equal, read.weights, made.weights))


def test_the_seed_decides_which_states_are_drawn(llada: Golden, tmp_path: Path) -> None:
    digests = [
        calibrated(llada, tmp_path / str(i), seed=seed).provenance
        for i, seed in enumerate((0, 0, 1, 2))
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.parametrize("lengths", [[7], [7, 9, 7, 9, 9], [TOKENS_AT_ONCE + 1] * 2, [600] * 9])
def test_batches_hold_every_state_once_in_equal_lengths(lengths: list[int]) -> None:
    states = [
        State(torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.bool),
              torch.ones(n, dtype=torch.bool), 0, 0, i, 1.0)
        for i, n in enumerate(lengths)
    ]  # fmt: skip
    batches = batch_states(states)
    assert sorted(i for batch in batches for i in batch) == list(range(len(states)))
    for batch in batches:
        assert len({lengths[i] for i in batch}) == 1
        assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= TOKENS_AT_ONCE
