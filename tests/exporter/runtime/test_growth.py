"""Canvases that grow: the published loop, once more in plain Python, and what it must not do."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.runtime.answer import answers, moved
from exporter.runtime.bundle import ModelFacts
from exporter.runtime.errors import UserError
from exporter.runtime.growth import ends
from exporter.runtime.loop import decode
from exporter.runtime.session import Bools, Cache, Ints, Reductions
from exporter.runtime.settings import Settings
from exporter.runtime.task import Task, make_canvas, make_task
from tests.conformance.generate import BLOCK, EOS, LENGTH, MASK, PROMPT, VOCABULARY, Run, daedal
from tests.numpy_model import reduce

FACTS = ModelFacts(
    family="any", name="toy", attention="full", shift=False, corruption="absorbing",
    block_seed="mask", vocab_size=VOCABULARY, max_length=64, mask_id=MASK, eos_id=EOS, eot_id=None,
    pad_id=0, special_ids=(EOS,),
)  # fmt: skip


@dataclass
class Ending:
    """Gaussian logits made from the tokens that a row shows; an end is likelier to the right."""

    salt: int = 0
    slope: float = 1.0

    def forward(
        self,
        ids: Ints,
        key_mask: Bools,
        window: Ints,
        special_bias: npt.NDArray[np.float32],
        cfg_scale: float | None,
        temperature: float | None,
        wanted: frozenset[str],
        cache: Cache | None = None,
        start: int = 0,
        causal: bool = False,
        shadow: Ints | None = None,
    ) -> Reductions:
        logits = np.zeros((*ids.shape, VOCABULARY))
        for row, (tokens, keep) in enumerate(zip(ids, key_mask, strict=True)):
            rng = np.random.default_rng([self.salt, *tokens[keep]])
            made = rng.normal(0, 3, (int(keep.sum()), VOCABULARY))
            made[:, EOS] += self.slope * (np.arange(len(made)) - len(PROMPT)) - 3
            logits[row, keep] = made
        logits[..., MASK] = -1e4
        return reduce(logits[:, window], np.zeros(VOCABULARY), 1.0, ids[:, window])

    def new_cache(self, rows: int, length: int) -> Cache:
        raise AssertionError("a canvas that grows has no cache")


chosen = st.builds(
    Settings,
    sampler=st.just("daedal"),
    gen_length=st.just(LENGTH),
    block_length=st.just(BLOCK),
    threshold=st.sampled_from([0.4, 0.9]),
    low_threshold=st.sampled_from([0.2, 0.6]),
    initial_length=st.integers(1, LENGTH),
    growth=st.sampled_from([2, 3, 8]),
    eos_threshold=st.sampled_from([0.2, 0.5]),
    eos_window=st.integers(1, 5),
    early_stop=st.just(False),
)


@settings(max_examples=150, deadline=None)
@given(chosen, st.integers(0, 99), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_run_is_that_of_the_published_loop(options: Settings, salt: int, slope: float) -> None:
    names = ("threshold", "low_threshold", "initial_length", "growth", "eos_threshold")
    run = Run({name: getattr(options, name) for name in (*names, "eos_window")})
    session = Ending(salt, slope)

    def look(window: list[int]) -> dict[int, dict[str, float]]:
        found = session.forward(
            np.asarray([run.canvas]), np.ones((1, len(run.canvas)), bool), np.asarray(window),
            np.zeros((2, 1), np.float32), None, None, frozenset(),
        )  # fmt: skip
        pairs = zip(window, found["id1"][0], found["rest"][0], strict=True)
        return {i: {"id1": int(best), "p": float(1 / (1 + rest))} for i, best, rest in pairs}

    want = [(call["canvas"], call["commits"], call["grown"]) for call in daedal(run, look)]
    canvas, length, key_mask = make_canvas([PROMPT], LENGTH, FACTS)
    got = [
        (
            step.canvas_before[0, : step.stop].tolist(),
            [[at, token] for _, at, token in step.commits],
            [[at, count] for _, at, count in step.grown],
        )
        for step in decode(session, FACTS, options, canvas, length, key_mask)
    ]
    assert got == want
    assert canvas[key_mask].tolist() == run.canvas


@settings(max_examples=60, deadline=None)
@given(chosen, st.integers(0, 99), st.booleans())
def test_rows_have_lengths_of_their_own(options: Settings, salt: int, early: bool) -> None:
    options = replace(options, early_stop=early)
    prompts = [[1, 2, 3, 4], [5], [1, MASK, 3]]
    together = make_canvas(prompts, LENGTH, FACTS)
    list(decode(Ending(salt), FACTS, options, *together))
    for row, prompt in enumerate(prompts):
        alone = make_canvas([prompt], LENGTH, FACTS)
        list(decode(Ending(salt), FACTS, options, *alone))
        assert together[0][row, together[2][row]].tolist() == alone[0][alone[2]].tolist()


@settings(max_examples=60, deadline=None)
@given(chosen, st.integers(0, 99))
def test_the_trace_tells_where_tokens_are_in_the_end(options: Settings, salt: int) -> None:
    task = make_task(FACTS, options, *make_canvas([PROMPT], LENGTH, FACTS))
    trace: list[tuple[int, int, int, int]] = []
    for step in decode(
        Ending(salt), FACTS, options, task.canvas, task.prompt_length, task.key_mask
    ):
        trace += [(step.index, *commit) for commit in step.commits]
        trace = [(index, row, moved(step, row, at), i) for index, row, at, i in trace]
    answer = answers(task, trace)[0]
    assert answer.ids == task.canvas[task.key_mask].tolist()
    for _, position, token in answer.trace:
        assert answer.ids[position] == token
    assert answer.new == answer.ids[len(PROMPT) :]


def test_a_call_feeds_no_more_than_is_shown() -> None:
    """That is what a short canvas saves."""
    options = Settings(sampler="daedal", gen_length=32, block_length=4, initial_length=4)
    canvas, length, key_mask = make_canvas([PROMPT], 32, FACTS)
    fed = [step.stop for step in decode(Ending(3), FACTS, options, canvas, length, key_mask)]
    assert fed[0] == 8 and fed == sorted(fed)
    assert fed[-1] <= ends(Task(FACTS, options, canvas, length, key_mask, canvas == MASK))[0] <= 36


@pytest.mark.parametrize(
    ("model", "others", "says"),
    [
        (FACTS, {"cache": "prefix"}, "holds them in place"),
        (replace(FACTS, eos_id=None), {}, "does not have"),
        (replace(FACTS, attention="block-causal", block_length=4), {}, "block by block"),
    ],
)
def test_what_cannot_grow_is_refused(model: ModelFacts, others: dict[str, Any], says: str) -> None:
    options = Settings(sampler="daedal", gen_length=8, block_length=4, **others)
    with pytest.raises(UserError, match=says) as error:
        make_task(model, options, *make_canvas([[1]], 8, model))
    assert error.value.hint


def test_confidence_in_the_end_cannot_be_hidden() -> None:
    with pytest.raises(UserError, match="how sure the end is"):
        Settings(sampler="daedal", confidence_eos_inf=True)


def test_tokens_that_stand_in_the_answer_are_refused() -> None:
    canvas, length, key_mask = make_canvas([PROMPT], 8, FACTS)
    canvas[0, -1] = 5
    options = Settings(sampler="daedal", gen_length=8, block_length=4)
    with pytest.raises(ValueError, match="which is to grow"):
        list(decode(Ending(), FACTS, options, canvas, length, key_mask))
