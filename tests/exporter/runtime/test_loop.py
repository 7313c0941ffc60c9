"""What holds for every sampler and any model: termination, fixed tokens, no mask, independence."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.runtime.bundle import ModelFacts
from exporter.runtime.ending import first_stop
from exporter.runtime.errors import UserError
from exporter.runtime.loop import Result, decode, generate
from exporter.runtime.session import Bools, Ints, Reductions
from exporter.runtime.settings import BLOCK_SAMPLERS, CANVAS_SAMPLERS, Settings
from exporter.runtime.task import make_canvas
from tests.numpy_model import reduce

V, MASK, EOS, EOT, PAD = 10, 9, 7, 6, 8
FACTS = ModelFacts(
    family="llada",
    name="toy",
    attention="full",
    shift=False,
    corruption="absorbing",
    block_seed="mask",
    vocab_size=V,
    max_length=64,
    mask_id=MASK,
    eos_id=EOS,
    eot_id=EOT,
    pad_id=PAD,
    special_ids=(EOS, EOT),
)
SAMPLERS = BLOCK_SAMPLERS + CANVAS_SAMPLERS


@dataclass
class Noise:
    """A model whose logits are integers made from the unpadded tokens of a row: ties abound.

    `broken` puts NaN and infinity among the odds.
    """

    salt: int = 0
    broken: bool = False
    rows: int = 0

    def forward(
        self,
        ids: Ints,
        key_mask: Bools,
        window: Ints,
        special_bias: npt.NDArray[np.float32],
        cfg_scale: float | None,
        temperature: float | None,
        wanted: frozenset[str],
    ) -> Reductions:
        self.rows += len(ids)
        logits = np.zeros((*ids.shape, V))
        for row, (tokens, keep) in enumerate(zip(ids, key_mask, strict=True)):
            rng = np.random.default_rng([self.salt, *tokens[keep]])
            logits[row, keep] = rng.integers(-3, 4, (int(keep.sum()), V))
        if cfg_scale is not None:
            c, u = np.split(logits, 2)
            logits = u + (cfg_scale + 1) * (c - u)
        logits[..., MASK] = -1e4
        logits[..., [EOS, EOT]] += special_bias[0]
        bias = np.zeros(V)
        bias[[EOS, EOT]] = special_bias[1]
        found = reduce(logits[:, window], bias, temperature or 1.0)
        if self.broken:
            odd = (found["l1"] + found["id1"]) % 3
            for name in ("rest", "entropy", "rest_t", "l2"):
                found[name] = np.where(odd == 0, np.nan, np.where(odd == 1, np.inf, found[name]))
        return {name: found[name] for name in wanted}


def quiet(sampler: str, **others: object) -> Settings:
    return replace(Settings(sampler=sampler, gen_length=12, block_length=4), **others)  # type: ignore[arg-type]


prompts = st.lists(
    st.lists(st.sampled_from([0, 1, 2, 3, MASK]), min_size=1, max_size=6), min_size=1, max_size=3
)
options = st.builds(
    quiet,
    st.sampled_from(SAMPLERS),
    steps=st.sampled_from([None, 3, 6, 12, 24]),
    temperature=st.sampled_from([0.0, 0.8]),
    top_p=st.sampled_from([None, 0.7]),
    top_k=st.sampled_from([None, 2]),
    alg_temp=st.sampled_from([None, 0.4]),
    cfg_scale=st.sampled_from([0.0, 0.5]),
    eos_inf=st.booleans(),
    early_stop=st.booleans(),
    seed=st.integers(0, 3),
)


@settings(max_examples=150, deadline=None)
@given(prompts, options, st.booleans(), st.integers(0, 9))
def test_every_run_ends_full_and_keeps_what_was_given(
    given_: list[list[int]], options: Settings, broken: bool, salt: int
) -> None:
    canvas, length, key_mask = make_canvas(given_, options.gen_length, FACTS)
    start, result = canvas.copy(), Result(canvas)
    committed = np.zeros(canvas.shape, int)
    index = -1
    for step in decode(Noise(salt, broken), FACTS, options, canvas, length, key_mask, result):
        assert step.index > index
        index = step.index
        assert step.commits  # each forward pays
        for row, position, token in step.commits:
            assert step.canvas_before[row, position] == MASK != token
            assert canvas[row, position] == token
            assert position in step.window
            committed[row, position] += 1
    assert not (canvas == MASK).any()
    assert np.array_equal(canvas[start != MASK], start[start != MASK])
    assert committed.max() <= 1
    assert not committed[start != MASK].any()
    assert result.forwards <= (start == MASK).sum()
    if options.early_stop and (first_stop(canvas, length, FACTS) < canvas.shape[1]).all():
        assert result.forwards + result.skipped == index + 1  # nothing is called after the end
    if not broken:
        assert result.nans == 0


def deterministic(options: Settings) -> bool:
    draws = options.temperature > 0 or options.sampler in ("random", "origin")
    return not draws and not (options.by_canvas and options.alg_temp)


@settings(max_examples=100, deadline=None)
@given(prompts, options, st.integers(0, 9))
def test_rows_of_a_batch_do_not_see_each_other(
    given_: list[list[int]], options: Settings, salt: int
) -> None:
    """Padding and neighbours change nothing. The first row also has the random numbers of one
    that is alone; draws of the others come from their own generators."""
    canvas, length, key_mask = make_canvas(given_, options.gen_length, FACTS)
    generate(Noise(salt), FACTS, options, canvas, length, key_mask)
    for row, prompt in enumerate(given_):
        alone = make_canvas([prompt], options.gen_length, FACTS)
        generate(Noise(salt), FACTS, options, *alone)
        if row == 0 or deterministic(options):
            assert canvas[row, key_mask[row]].tolist() == alone[0][0].tolist()


@settings(max_examples=60, deadline=None)
@given(prompts, options, st.integers(0, 9))
def test_early_stop_changes_nothing_up_to_the_end(
    given_: list[list[int]], options: Settings, salt: int
) -> None:
    results = []
    for early_stop in (True, False):
        canvas, length, key_mask = make_canvas(given_, options.gen_length, FACTS)
        session, chosen = Noise(salt), replace(options, early_stop=early_stop)
        result = generate(session, FACTS, chosen, canvas, length, key_mask)
        results.append((canvas, first_stop(canvas, length, FACTS), result.forwards, session.rows))
    (short, end, fewer, fed), (full, same_end, more, all_fed) = results
    assert fewer <= more
    assert fed <= all_fed
    assert np.array_equal(end, same_end)
    for row, stop in enumerate(end):
        assert np.array_equal(short[row, : stop + 1], full[row, : stop + 1])
        behind = short[row, stop + 1 :]
        assert ((behind == full[row, stop + 1 :]) | (behind == EOS)).all()


@settings(max_examples=40, deadline=None)
@given(options, st.integers(0, 9))
def test_a_seed_reproduces(options: Settings, salt: int) -> None:
    runs = []
    for _ in range(2):
        canvas, length, key_mask = make_canvas([[1, 2], [3]], options.gen_length, FACTS)
        runs.append(generate(Noise(salt), FACTS, options, canvas, length, key_mask))
    assert np.array_equal(runs[0].canvas, runs[1].canvas)
    assert runs[0].forwards == runs[1].forwards


def test_other_seeds_and_rows_draw_differently() -> None:
    drawn = set()
    for seed in range(3):
        task = make_canvas([[1, 2], [1, 2]], 12, FACTS)
        chosen = quiet("low-confidence", temperature=1.0, seed=seed, early_stop=False)
        generate(Noise(), FACTS, chosen, *task)
        drawn |= {tuple(row) for row in task[0].tolist()}
    assert len(drawn) == 6


def test_an_answer_that_stands_already_needs_no_forward() -> None:
    canvas, length, key_mask = make_canvas([[1]], 12, FACTS)
    canvas[0, length : length + 2] = [3, EOT]
    result = generate(Noise(), FACTS, quiet("threshold"), canvas, length, key_mask)
    assert result.forwards == result.skipped == 0
    assert canvas[0].tolist() == [1, 3, EOT, *[EOS] * 10]


def test_eos_inf_never_predicts_the_end() -> None:
    for salt in range(5):
        task = make_canvas([[1]], 12, FACTS)
        generate(Noise(salt), FACTS, quiet("threshold", eos_inf=True, early_stop=False), *task)
        assert EOS not in task[0]


def test_confidence_eos_inf_commits_ends_last() -> None:
    ends = 0
    for salt in range(20):
        chosen = quiet("low-confidence", confidence_eos_inf=True, early_stop=False)
        for step in decode(Noise(salt), FACTS, chosen, *make_canvas([[1]], 12, FACTS)):
            if step.commits[0][2] in (EOS, EOT):
                ends += 1
                open_ = np.isin(step.window, np.flatnonzero(step.canvas_before[0] == MASK))
                assert np.isin(step.reductions["id1"][0, open_], [EOS, EOT]).all()
    assert ends  # the rule was put to the test


def test_blanks_of_the_prompt_come_first_and_alone() -> None:
    canvas, length, key_mask = make_canvas([[1, MASK, 2, MASK, 3]], 4, FACTS)
    chosen = quiet("threshold", gen_length=4, threshold=1.0)
    order = [
        step.commits[0][1] for step in decode(Noise(), FACTS, chosen, canvas, length, key_mask)
    ]
    assert sorted(order[:2]) == [1, 3]
    only = make_canvas([[1, MASK, 2, MASK, 3]], 0, FACTS)
    generate(Noise(), FACTS, quiet("low-confidence", gen_length=0), *only)
    assert only[0][0, [0, 2, 4]].tolist() == [1, 2, 3]
    assert MASK not in only[0]


def test_rows_without_work_are_not_fed() -> None:
    canvas, length, key_mask = make_canvas([[1, MASK], [1, 2]], 0, FACTS)
    session, result = Noise(), Result(canvas)
    chosen = quiet("low-confidence", gen_length=0)
    steps = list(decode(session, FACTS, chosen, canvas, length, key_mask, result))
    assert session.rows == result.forwards == 1
    assert steps[0].reductions["rest"][1].tolist() == [np.inf]
    assert steps[0].reductions["id1"][1].tolist() == [-1]


class Masks(Noise):
    """A graph that fails to suppress the mask id."""

    def forward(self, *args: object, **names: object) -> Reductions:
        found = super().forward(*args, **names)  # type: ignore[arg-type]
        return {**found, "id1": np.full_like(found["id1"], MASK)}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_predicted_mask_is_an_error(sampler: str) -> None:
    with pytest.raises(UserError, match="predicted id 9"):
        generate(Masks(), FACTS, quiet(sampler), *make_canvas([[1]], 12, FACTS))


def test_what_the_loop_cannot_decode_is_refused() -> None:
    task = make_canvas([[1]], 12, FACTS)
    with pytest.raises(UserError, match="block-causal"):
        generate(Noise(), replace(FACTS, attention="block-causal"), quiet("threshold"), *task)
    with pytest.raises(UserError, match="dual cache"):
        generate(Noise(), FACTS, quiet("threshold", cache="dual"), *task)
    with pytest.raises(ValueError, match="do not fit"):
        generate(Noise(), FACTS, quiet("threshold", gen_length=8), *task)
