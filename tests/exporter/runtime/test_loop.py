"""What holds for every sampler and any model: termination, fixed tokens, no mask, independence."""

import zlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from exporter.runtime import forward
from exporter.runtime.bundle import ModelFacts
from exporter.runtime.ending import first_stop
from exporter.runtime.errors import UserError
from exporter.runtime.loop import Result, decode, generate
from exporter.runtime.session import Bools, Cache, Floats, Ints, Reductions
from exporter.runtime.settings import BLOCK_SAMPLERS, CANVAS_SAMPLERS, Settings
from exporter.runtime.task import make_canvas, make_task
from tests.numpy_model import TokenCache, reduce

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
PRIMES = np.asarray([3, 5, 11, 17, 31, 53, 73, 101, 127, 151])  # V of them
BLOCK = 4
CAUSAL = replace(FACTS, attention="block-causal", block_length=BLOCK)
SEEDED = replace(CAUSAL, block_seed="token", shift=True)
COMMITTED = replace(CAUSAL, block_seed="token", commit="causal")
SAMPLERS = BLOCK_SAMPLERS + CANVAS_SAMPLERS


@dataclass
class Noise:
    """A model whose logits are integers made from the unpadded tokens of a row: ties abound.

    `broken` puts NaN and infinity among the odds. Its cache remembers tokens, so that caches of
    full attention change nothing.
    """

    salt: int = 0
    broken: bool = False
    shift: bool = False
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
        cache: Cache | None = None,
        start: int = 0,
        causal: bool = False,
        shadow: Ints | None = None,
    ) -> Reductions:
        assert cache is None or isinstance(cache, TokenCache)
        if shadow is not None:
            return self._with_shadow(
                ids, key_mask, window, special_bias, cfg_scale, temperature, wanted, shadow
            )
        self.rows += len(ids)
        rows = np.maximum(window - 1, 0) if self.shift else window
        assert ((rows >= start) & (rows < start + ids.shape[1])).all()
        ids = ids if cache is None else cache.feed(ids, start)
        logits = np.zeros((*ids.shape, V))
        for row, (tokens, keep) in enumerate(zip(ids, key_mask, strict=True)):
            rng = np.random.default_rng([self.salt, *tokens[keep]])
            logits[row, keep] = rng.integers(-3, 4, (int(keep.sum()), V))
        return self.reduce(
            logits[:, window], special_bias, cfg_scale, temperature, wanted, ids[:, window]
        )

    def _with_shadow(
        self,
        ids: Ints,
        key_mask: Bools,
        window: Ints,
        special_bias: npt.NDArray[np.float32],
        cfg_scale: float | None,
        temperature: float | None,
        wanted: frozenset[str],
        shadow: Ints,
    ) -> Reductions:
        """A token is predicted from the others, and from what else the shadow stands for."""
        assert not self.shift
        self.rows += len(ids)
        logits = np.zeros((len(ids), ids.shape[1] + shadow.shape[1], V))
        for row, (tokens, keep) in enumerate(zip(ids, key_mask, strict=True)):
            rng = np.random.default_rng([self.salt, *tokens[keep]])
            logits[row, : ids.shape[1]][keep] = rng.integers(-3, 4, (int(keep.sum()), V))
            first, named = int(keep.argmax()), shadow[row] >= 0
            for place in np.flatnonzero(named):
                others = tokens.copy()
                others[shadow[row, place]] = MASK
                seed = [self.salt, place, *others[keep], *(shadow[row, named] - first)]
                logits[row, ids.shape[1] + place] = np.random.default_rng(seed).integers(-3, 4, V)
        held = np.concatenate([ids, np.take_along_axis(ids, np.maximum(shadow, 0), 1)], 1)
        names = wanted - {"l_unseen"} | {"l_held"}
        logits, held = logits[:, window], held[:, window]
        found = self.reduce(logits, special_bias, cfg_scale, temperature, names, held)
        return {**found, "l_unseen": found["l_held"]}

    def reduce(
        self,
        logits: Floats,
        special_bias: npt.NDArray[np.float32],
        cfg_scale: float | None,
        temperature: float | None,
        wanted: frozenset[str],
        held: Ints,
    ) -> Reductions:
        if cfg_scale is not None:
            c, u = np.split(logits, 2)
            logits, held = u + (cfg_scale + 1) * (c - u), held[: len(c)]
        logits[..., MASK] = -1e4
        logits[..., [EOS, EOT]] += special_bias[0]
        bias = np.zeros(V)
        bias[[EOS, EOT]] = special_bias[1]
        found = reduce(logits, bias, temperature or 1.0, held)
        if self.broken:
            odd = (found["l1"] + found["id1"]) % 3
            for name in ("rest", "entropy", "rest_t", "l2"):
                found[name] = np.where(odd == 0, np.nan, np.where(odd == 1, np.inf, found[name]))
        return {name: found[name] for name in wanted}

    def new_cache(self, rows: int, length: int) -> Cache:
        return TokenCache(np.zeros((rows, length), np.int64))


@dataclass
class StateCache(TokenCache):
    """Also what a second layer made of the tokens when they were fed."""

    states: Ints


@dataclass
class Causal(Noise):
    """Block-causal, in two layers: what stands in the cache depends on when it was fed.

    A state is a hash of the tokens that a position sees, a logit one of the states that it sees,
    both counted from the first real token. A stale state changes what is predicted. `commits`: only
    the last block that is shown is seen both ways.
    """

    fed: int = 0
    commits: bool = False

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
        if cache is None:
            cache = self.new_cache(*ids.shape)
        assert isinstance(cache, StateCache)
        at = np.maximum(window - 1, 0) if self.shift or causal else window
        assert ((at >= start) & (at < start + ids.shape[1])).all()
        self.rows, self.fed = self.rows + len(ids), self.fed + ids.size
        cache.feed(ids, start)
        logits = np.zeros((len(ids), len(window), V))
        for row, keep in enumerate(key_mask):
            first, last = int(keep.argmax()), int(np.flatnonzero(keep)[-1]) + 1
            ends = [min(last, first + (p - first) // BLOCK * BLOCK + BLOCK) for p in range(last)]
            if self.commits:
                both = last if causal else last - BLOCK
                ends = [last if p >= both else p + 1 for p in range(last)]
            for p in range(max(start, first), min(start + ids.shape[1], last)):
                seen = cache.tokens[row, first : ends[p]].tobytes()
                cache.states[row, p] = zlib.crc32(seen, p - first)
            for place, p in enumerate(at):
                if first <= p < last:
                    seen = cache.states[row, first : ends[p]].tobytes()
                    hashed = zlib.crc32(seen, p - first + 1000 * self.salt)
                    logits[row, place] = (hashed * PRIMES >> 16) % 7 - 3
        held = cache.tokens[:, np.minimum(window, cache.tokens.shape[1] - 1)]
        return self.reduce(logits, special_bias, cfg_scale, temperature, wanted, held)

    def new_cache(self, rows: int, length: int) -> Cache:
        empty = np.zeros((rows, length), np.int64)
        return StateCache(empty, empty.copy())


def quiet(sampler: str, **others: object) -> Settings:
    return replace(Settings(sampler=sampler, gen_length=12, block_length=4), **others)  # type: ignore[arg-type]


prompts = st.lists(
    st.lists(st.sampled_from([0, 1, 2, 3, MASK]), min_size=1, max_size=6), min_size=1, max_size=3
)


def fuzzed(sampler: str, **others: object) -> Settings:
    """Draws are left out where the sampler does not go with them."""
    cold = {"temperature": 0.0} if Settings(sampler=sampler).rule.credited else {}
    return quiet(sampler, **others | cold)


options = st.builds(
    fuzzed,
    st.sampled_from(SAMPLERS),
    steps=st.sampled_from([None, 3, 6, 12, 24]),
    temperature=st.sampled_from([0.0, 0.8]),
    top_p=st.sampled_from([None, 0.7]),
    top_k=st.sampled_from([None, 2]),
    alg_temp=st.sampled_from([None, 0.4]),
    cfg_scale=st.sampled_from([0.0, 0.5]),
    threshold=st.sampled_from([None, 0.3, 1.0]),
    low_threshold=st.sampled_from([None, 0.2]),
    gamma=st.sampled_from([None, 2.0]),
    editing_threshold=st.sampled_from([0.2, 0.9]),
    max_post_steps=st.sampled_from([0, 1, 16]),
    num_to_transfer=st.sampled_from([1, 3]),
    minimal_topk=st.sampled_from([1, 4]),
    sub_block_length=st.sampled_from([2, 3, 8]),
    max_forwards=st.sampled_from([None, 1, 5]),
    initial_length=st.sampled_from([1, 5, 64]),
    growth=st.sampled_from([2, 8]),
    keep_threshold=st.sampled_from([0.1, 0.9]),
    eos_window=st.sampled_from([1, 4, 32]),
    eos_inf=st.booleans(),
    early_stop=st.booleans(),
    eos_early_stop=st.booleans(),
    seed=st.integers(0, 3),
)


@st.composite
def runs(draw: st.DrawFn) -> tuple[ModelFacts, Settings]:
    """A model of either attention, and settings that it can be decoded with."""
    chosen = draw(options)
    if chosen.rule.grows or chosen.rule.shadowed:
        return FACTS, chosen
    if not chosen.by_canvas and draw(st.booleans()):
        model = draw(st.sampled_from([CAUSAL, SEEDED, COMMITTED]))
        return model, replace(chosen, cache=draw(st.sampled_from(["none", "exact"])))
    caches = ["none"] if chosen.by_canvas else ["none", "prefix", "dual"]
    chosen = replace(chosen, cache=draw(st.sampled_from(caches)))
    if chosen.cache != "dual" and "early_commit" in chosen.rule.reads:
        chosen = replace(chosen, early_commit=draw(st.booleans()))
    return FACTS, chosen


def noise(model: ModelFacts, salt: int = 0, broken: bool = False) -> Noise:
    if model is FACTS:
        return Noise(salt, broken)
    return Causal(salt, broken, model.shift, commits=model is COMMITTED)


@settings(max_examples=200, deadline=None)
@given(prompts, runs(), st.booleans(), st.integers(0, 9))
def test_every_run_ends_full_and_keeps_what_was_given(
    given_: list[list[int]], run: tuple[ModelFacts, Settings], broken: bool, salt: int
) -> None:
    model, options = run
    canvas, length, key_mask = make_canvas(given_, options.gen_length, model)
    start, result = canvas.copy(), Result(canvas)
    committed = np.zeros(canvas.shape, int)
    index = -1
    session = noise(model, salt, broken)
    for step in decode(session, model, options, canvas, length, key_mask, result):
        assert step.index > index
        index = step.index
        assert step.commits or options.rule.revises or options.rule.grows  # each forward pays
        now = step.canvas_before.copy()
        for row, position, token in step.commits:
            assert now[row, position] == MASK != token
            now[row, position] = token
            assert position in step.window
            ahead = model.shift or step.causal
            assert step.stop + ahead > position >= step.start + (ahead and position > 0)
            committed[row, position] += 1
        for row, position, old, new in step.edits:
            assert now[row, position] == old != new
            now[row, position] = new
            assert start[row, position] == MASK
            assert position in step.window
        for row, position, count in step.grown:
            end = int(np.flatnonzero(key_mask[row])[-1]) + 1 - count
            assert position == end or now[row, position] == MASK
            now[row] = np.insert(now[row], position, [MASK] * count)[: canvas.shape[1]]
            committed[row] = np.insert(committed[row], position, [0] * count)[: canvas.shape[1]]
        at_once = options.early_stop and options.stops_at_once
        assert np.array_equal(canvas, now) or (at_once and (canvas[canvas != now] == EOS).all())
    assert not (canvas == MASK).any()
    assert np.array_equal(canvas[start != MASK], start[start != MASK])
    assert not committed[start != MASK].any()
    if not options.rule.revises:
        assert committed.max() <= 1
        assert result.forwards <= (start == MASK).sum() * (1 + options.rule.grows)
    if options.max_forwards is not None:
        masked = (start == MASK) & key_mask
        blocks = make_task(model, options, start, length, key_mask).blocks()
        seeds = len(blocks) * (model.block_seed == "token")
        assert result.forwards <= (max(options.max_forwards, len(blocks)) + seeds) * masked.any()
    if options.early_stop and (first_stop(canvas, length, model) < canvas.shape[1]).all():
        assert result.forwards + result.skipped >= index + 1
    if not broken:
        assert result.nans == 0


@settings(max_examples=100, deadline=None)
@given(prompts, runs(), st.integers(0, 9), st.sampled_from([3, 512]))
def test_caches_of_a_model_that_they_are_exact_for_change_nothing(
    given_: list[list[int]], run: tuple[ModelFacts, Settings], salt: int, chunk: int
) -> None:
    model, options = run
    if options.cache == "none":
        return
    results = []
    for cache in ("none", options.cache):
        canvas, length, key_mask = make_canvas(given_, options.gen_length, model)
        chosen, session = replace(options, cache=cache), noise(model, salt)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(forward, "CHUNK", chunk)
            result = generate(session, model, chosen, canvas, length, key_mask)
        results.append((canvas.tolist(), result.forwards))
    assert results[0] == results[1]


def deterministic(options: Settings) -> bool:
    draws = options.temperature > 0 or options.sampler in ("random", "origin")
    return not draws and not (options.by_canvas and options.alg_temp)


@settings(max_examples=80, deadline=None)
@given(prompts, runs(), st.integers(0, 9))
def test_rows_of_a_batch_do_not_see_each_other(
    given_: list[list[int]], run: tuple[ModelFacts, Settings], salt: int
) -> None:
    """Padding and neighbours change nothing. The first row also has the random numbers of one
    that is alone; draws of the others come from their own generators."""
    model, options = run[0], replace(run[1], max_forwards=None)  # which is for all rows together
    # with a shift a blank at the very start is predicted by padding, or by its own row
    assume(not model.shift or all(prompt[0] != MASK for prompt in given_))
    canvas, length, key_mask = make_canvas(given_, options.gen_length, model)
    generate(noise(model, salt), model, options, canvas, length, key_mask)
    for row, prompt in enumerate(given_):
        alone = make_canvas([prompt], options.gen_length, model)
        generate(noise(model, salt), model, options, *alone)
        if row == 0 or deterministic(options):
            assert canvas[row, key_mask[row]].tolist() == alone[0][alone[2]].tolist()


@settings(max_examples=60, deadline=None)
@given(prompts, options, st.integers(0, 9))
def test_early_stop_changes_nothing_up_to_the_end(
    given_: list[list[int]], options: Settings, salt: int
) -> None:
    if len(given_) > 1:
        options = replace(options, max_forwards=None)  # which is for all rows together
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
        assert options.rule.grows or ((behind == full[row, stop + 1 :]) | (behind == EOS)).all()


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


@pytest.mark.parametrize(
    ("model", "chosen", "says"),
    [
        (replace(FACTS, corruption="uniform"), quiet("threshold"), "uniform corruption"),
        (FACTS, quiet("threshold", cache="exact"), "no exact cache"),
        (FACTS, quiet("entropy", cache="prefix"), "prefix cache goes by blocks"),
        (FACTS, quiet("random", cache="dual", early_commit=True), "only a block is predicted"),
        (FACTS, quiet("threshold", gen_length=10), "not a multiple of block_length"),
        (CAUSAL, quiet("entropy"), "fills the whole canvas in any order"),
        (CAUSAL, quiet("threshold", cache="dual"), "dual cache approximates full attention"),
        (CAUSAL, quiet("random", early_commit=True), "block by block"),
        (CAUSAL, quiet("threshold", block_length=8), "blocks of 4"),
        (replace(CAUSAL, max_length=13), quiet("threshold", gen_length=12), "up to 16, more than"),
    ],
)
def test_what_the_loop_cannot_decode_is_refused(
    model: ModelFacts, chosen: Settings, says: str
) -> None:
    with pytest.raises(UserError, match=says) as error:
        generate(noise(model), model, chosen, *make_canvas([[1]], chosen.gen_length, model))
    assert error.value.hint


def test_a_canvas_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        generate(Noise(), FACTS, quiet("threshold", gen_length=8), *make_canvas([[1]], 12, FACTS))


def test_block_causal_canvases_are_whole_blocks_from_the_first_token() -> None:
    canvas, length, key_mask = make_canvas([[1, 2, 3], [1], [1, 2, 3, 1, 2]], 6, CAUSAL)
    assert length == 5
    assert canvas.tolist() == [
        [PAD, PAD, 1, 2, 3, *[MASK] * 9],
        [PAD, PAD, PAD, PAD, 1, *[MASK] * 7, PAD, PAD],
        [1, 2, 3, 1, 2, *[MASK] * 7, PAD, PAD],
    ]
    assert np.array_equal(key_mask, canvas != PAD)


def test_the_exact_cache_stores_a_block_with_the_first_call_of_the_next() -> None:
    """Four calls a block: [final, end) in the first, the block alone in the others."""
    task = make_canvas([[1, 2, 3, 1, 2]], 7, CAUSAL)
    chosen = quiet("sdar-sequential", gen_length=7, cache="exact", early_stop=False)
    fed = [(s.start, s.stop) for s in decode(Causal(), CAUSAL, chosen, *task)]
    assert fed == [(0, 8), (4, 8), (4, 8), (4, 12), (8, 12), (8, 12), (8, 12)]


def test_long_prompts_are_fed_in_chunks_before_the_first_call() -> None:
    """So that no call is larger than a chunk and two blocks; the last feeds what is left."""
    task = make_canvas([[1] * 1300, [2] * 1298], 4, CAUSAL)
    chosen, session = quiet("sdar-static", gen_length=4, cache="exact"), Recording()
    steps = list(decode(session, replace(CAUSAL, max_length=2000), chosen, *task))
    assert session.fed_ranges[:3] == [(0, 512), (510, 1022), (1020, 1304)]
    assert (steps[0].start, steps[0].stop) == (1020, 1304)
    # the second row starts at 2: its blocks end at 2 modulo 4, what a chunk cuts is fed again
    assert len(session.fed_ranges) == len(steps) + 2


class Recording(Noise):
    """Only writes down what it is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.fed_ranges: list[tuple[int, int]] = []

    def forward(self, ids: Ints, *others: object, **names: object) -> Reductions:
        self.fed_ranges.append((int(others[-1]), int(others[-1]) + ids.shape[1]))  # type: ignore[call-overload]
        window = others[1]
        assert isinstance(window, np.ndarray)
        shape = (len(ids), len(window))
        return {"id1": np.zeros(shape, np.int64), "rest": np.ones(shape)}


@pytest.mark.parametrize(("cache", "then"), [("prefix", (3, 12)), ("dual", (3, 8))])
def test_a_logits_shift_feeds_the_row_before_the_block(cache: str, then: tuple[int, int]) -> None:
    model = replace(FACTS, shift=True)
    chosen = quiet("threshold", threshold=1.0, cache=cache, early_stop=False, gen_length=8)
    task = make_canvas([[1, 2, 3, 1]], 8, model)
    steps = list(decode(Noise(shift=True), model, chosen, *task))
    assert [(s.start, s.stop) for s in steps[:2]] == [(0, 12), then]


def test_a_budget_fills_what_is_left_with_its_last_call() -> None:
    """Of 12 tokens in 3 blocks, one a call: 5 calls are 1, 2 and 2."""
    task = make_canvas([[1]], 12, FACTS)
    chosen = quiet("low-confidence", max_forwards=5, early_stop=False)
    commits = [len(step.commits) for step in decode(Noise(), FACTS, chosen, *task)]
    assert commits == [4, 1, 3, 1, 3]


def fast_dllm_v2(session: Causal, prompt: list[int], length: int, threshold: float) -> list[int]:
    """The upstream loop, without a cache: seed a block, fill its parts from left to right."""
    end = -(-(len(prompt) + length) // BLOCK) * BLOCK
    canvas = [*prompt, *[MASK] * (end - len(prompt))]

    def predict(positions: list[int], stop: int) -> Reductions:
        found = session.forward(
            np.asarray([canvas[:stop]]), np.ones((1, stop), bool), np.asarray(positions),
            np.zeros((2, 2), np.float32), None, None, frozenset({"id1", "rest"}),
        )  # fmt: skip
        return {name: array[0] for name, array in found.items()}

    for lo in range(len(prompt) // BLOCK * BLOCK, end, BLOCK):
        if canvas[lo] == MASK:
            canvas[lo] = int(predict([lo], lo)["id1"][0])
        for part in (range(lo, lo + 2), range(lo + 2, lo + BLOCK)):
            while masks := [p for p in part if canvas[p] == MASK]:
                found = predict(masks, lo + BLOCK)
                best = int(found["rest"].argmin())
                for n, p in enumerate(masks):
                    if n == best or 1 / (1 + found["rest"][n]) > threshold:
                        canvas[p] = int(found["id1"][n])
    return canvas


@pytest.mark.parametrize("cache", ["none", "exact"])
@pytest.mark.parametrize("prompt", [[1, 2, 3], [1, 2, 3, 0], [1, 2, 3, 0, 0]])
def test_seeded_blocks_are_those_of_fast_dllm_v2(cache: str, prompt: list[int]) -> None:
    for salt in range(10):
        task = make_canvas([prompt], 11, SEEDED)
        chosen = quiet(
            "fast-dllm-v2", gen_length=11, threshold=0.3, sub_block_length=2, cache=cache,
            early_stop=False,
        )  # fmt: skip
        generate(Causal(salt, shift=True), SEEDED, chosen, *task)
        want = fast_dllm_v2(Causal(salt, shift=True), prompt, 11, 0.3)
        assert task[0][0].tolist() == want


def test_early_stop_of_a_block_causal_model_waits_for_the_block_unless_told() -> None:
    saved = 0
    for salt in range(20):
        answers, calls = [], []
        for at_once in (False, True):
            canvas, length, key_mask = make_canvas([[1]], 31, CAUSAL)
            chosen = quiet("sdar-static", gen_length=31, eos_early_stop=at_once)
            steps = list(decode(Causal(salt), CAUSAL, chosen, canvas, length, key_mask))
            end = int(first_stop(canvas, length, CAUSAL)[0])
            answers.append(canvas[0, : end + 1].tolist())
            calls.append(len(steps))
            left = (steps[-1].canvas_before[0, : steps[-1].stop] == MASK).sum() - 1
            assert at_once or left == 0
        assert answers[0] == answers[1]
        saved += calls[0] - calls[1]
    assert saved > 0


class Sure(Noise):
    """The same, with larger gaps between logits."""

    def forward(self, *args: object, **names: object) -> Reductions:
        found = super().forward(*args, **names)  # type: ignore[arg-type]
        return {**found, "l1": 4 * found["l1"], "l2": 4 * found["l2"]}


def test_early_commit_fills_everything_once_the_model_is_sure() -> None:
    fewer = 0
    for salt in range(30):
        chosen = quiet("low-confidence", early_commit=True, early_stop=False, block_length=12)
        steps = list(decode(Sure(salt), FACTS, chosen, *make_canvas([[1]], 12, FACTS)))
        for number, step in enumerate(steps):
            masks = step.canvas_before[0] == MASK
            gap = (step.reductions["l1"] - step.reductions["l2"])[0]
            limit = 7.5 if number < 4 else 5.0 if number < 8 else 2.5
            early = gap.mean() >= limit
            assert len(step.window) == masks.sum()
            assert len(step.commits) == (masks.sum() if early else 1)
        fewer += 12 - len(steps)
    assert fewer > 0
