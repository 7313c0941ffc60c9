"""The float model with keys and values kept: equal to the model without where nothing is stale,
equal to a cache in numpy where something is, and exact throughout under a block-causal mask.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from exporter import float_session
from exporter.families import Spec
from exporter.float_session import FloatModel, FloatSession
from exporter.kv_cache import FloatCache
from exporter.layer import Layer
from exporter.model import attend, make_context
from exporter.runtime.session import Array, Bools, Ints, Reductions
from passes.activations.attention import AttentionGrid
from tests.fixtures_lower import TWO_FP32, LogitsCase, golden, logits_cases
from tests.numpy_model import NumpySession, load_numpy_model

FULL = ("llada", "dream")
ALL = frozenset({"id1", "l1", "rest", "l2", "topk_ids", "topk_logits", "entropy", "rest_t"})
CASES = [
    (f, case)
    for f in (*FULL, "sdar", "llada2", "lladamoe")
    for case in logits_cases(f)
    if len(case.ids[0]) > 12
]
each_case = pytest.mark.parametrize(
    ("family", "case"), CASES, ids=[f"{family}-{case.name}" for family, case in CASES]
)
each_full = pytest.mark.parametrize("family", FULL)


@cache
def session_of(family: str, block_length: int | None = None) -> FloatSession:
    checkpoint = golden(family)
    model = FloatModel(checkpoint)
    if block_length is not None:
        model.spec = replace(model.spec, block_length=block_length)
    return FloatSession(model, checkpoint.spec.vocab_size)


def ask(
    session: FloatSession | NumpySession,
    ids: Ints,
    key_mask: Bools,
    window: Ints,
    kept: object = None,
    start: int = 0,
    cfg_scale: float | None = None,
) -> Reductions:
    bias = np.zeros((2, 1), np.float32)
    return session.forward(ids, key_mask, window, bias, cfg_scale, None, ALL, kept, start)  # type: ignore[arg-type]


def padded_case(family: str) -> LogitsCase:
    return next(case for case in logits_cases(family) if not case.key_mask.all())


def predicted(spec: Spec, start: int, stop: int) -> Ints:
    """The window whose rows are the fed positions."""
    return np.arange(start, stop) + (1 if spec.shift else 0)


# Nothing stale


@each_case
def test_a_refresh_gives_what_no_cache_gives(family: str, case: LogitsCase) -> None:
    """Bit for bit: the same sums in the same order."""
    session, window = session_of(family, case.block_length), np.arange(case.ids.shape[1])
    plain = ask(session, case.ids, case.key_mask, window)
    kept = ask(session, case.ids, case.key_mask, window, session.new_cache(*case.ids.shape))
    assert all(np.array_equal(plain[name], kept[name]) for name in plain)


@each_case
def test_feeding_the_same_tokens_again_changes_nothing(family: str, case: LogitsCase) -> None:
    session = session_of(family, case.block_length)
    spec, length = session.model.spec, case.ids.shape[1]
    kept = session.new_cache(*case.ids.shape)
    whole = ask(session, case.ids, case.key_mask, predicted(spec, 0, length), kept)
    before = kept.keys.clone(), kept.values.clone()
    for lo, hi in ((0, 8), (4, 12), (8, length), (length - 1, length)):
        ids = case.ids[:, lo:hi]
        found = ask(session, ids, case.key_mask, predicted(spec, lo, hi), kept, lo)
        real = case.key_mask[:, lo:hi]
        assert np.abs(found["l1"] - whole["l1"][:, lo:hi])[real].max() <= TWO_FP32
        # operands are logits' inputs: closer to each other than those are
        for old, new in zip(before, (kept.keys, kept.values), strict=True):
            assert (old - new).abs().max() <= TWO_FP32


@each_full
def test_hidden_positions_have_no_say(family: str) -> None:
    """A longer cache, full of what an earlier prompt left behind."""
    session, case = session_of(family), padded_case(family)
    length = case.ids.shape[1]
    kept = session.new_cache(len(case.ids), length + 9)
    kept.keys.fill_(7.0), kept.values.fill_(-9.0)
    shown = np.pad(case.key_mask, ((0, 0), (0, 9)))
    window = np.arange(length)
    found = ask(session, case.ids, shown, window, kept)
    plain = ask(session, case.ids, case.key_mask, window)
    real = case.key_mask[:, np.maximum(window - session.model.spec.shift, 0)]
    assert np.abs(found["l1"] - plain["l1"])[real].max() <= TWO_FP32


# Stale by intent


@each_full
@pytest.mark.parametrize("cfg_scale", [None, 1.5])
def test_stale_keys_are_those_of_a_cache_in_numpy(family: str, cfg_scale: float | None) -> None:
    """A refresh, then steps that change tokens of one block, then of everything from it on."""
    model, case = load_numpy_model(golden(family).folder), padded_case(family)
    ours, numpy = session_of(family), NumpySession(model)
    ids, key_mask = case.ids.copy(), case.key_mask
    if cfg_scale is not None:
        ids = np.concatenate([ids, np.where(np.arange(ids.shape[1]) % 2, ids, 3)])
        key_mask = np.concatenate([key_mask, key_mask])
    length, rng = ids.shape[1], np.random.default_rng(0)
    caches = ours.new_cache(*ids.shape), numpy.new_cache(*ids.shape)
    # u + (s + 1) (c − u) takes (2 s + 1) times the error of its logits
    error = TWO_FP32 * (1 if cfg_scale is None else 2 * cfg_scale + 1)
    for lo, hi in ((0, length), (12, 18), (12, 18), (12, length), (18, 24)):
        ids[:, lo + 1 : hi] = rng.integers(0, 150, (len(ids), hi - lo - 1))
        window = predicted(ours.model.spec, lo, hi)[: length - lo - 1]
        fed = ids[:, lo:hi]
        got = ask(ours, fed, key_mask, window, caches[0], lo, cfg_scale)
        want = ask(numpy, fed, key_mask, window, caches[1], lo, cfg_scale)
        rows = window - ours.model.spec.shift
        real = key_mask[: len(got["l1"]), rows]
        for name in ("l1", "l2"):
            assert np.abs(got[name] - want[name])[real].max() <= error
        assert got["l1"].shape == (len(case.ids), len(window))


# Block-causal: exact


def pieces(length: int, block: int) -> dict[str, list[tuple[int, int]]]:
    """Calls that together feed a canvas, as a prompt of half of it is answered."""
    half = length // block // 2 * block
    blocks = [(lo, lo + block) for lo in range(half, length, block)]
    found = {
        "a block a call": [(lo, lo + block) for lo in range(0, length, block)],
        "prefill": [(0, half), *blocks],
        "prefill in chunks": [(0, block), (block, half), *blocks],
        "prefill with the first block": [(0, half + block), *blocks],
        "commit and next block": [(0, half), *((lo, lo + 2 * block) for lo, _ in blocks[:-1])],
    }
    return {name: [(lo, hi) for lo, hi in calls if lo < hi] for name, calls in found.items()}


BLOCK_CASES = [case for case in logits_cases("sdar") if case.block_length is not None]


@pytest.mark.parametrize("case", BLOCK_CASES, ids=[case.name for case in BLOCK_CASES])
def test_block_causal_calls_give_upstreams_logits(case: LogitsCase) -> None:
    """However the canvas is fed, only up to the visible end or with the rest hidden."""
    block = case.block_length
    assert block is not None
    session, length = session_of("sdar", block), case.ids.shape[1] // block * block
    logits = case.logits[:, :length].astype(np.float64)
    logits[..., session.model.spec.mask_id] = -np.inf
    for name, calls in pieces(length, block).items():
        kept = session.new_cache(len(case.ids), length)
        for lo, hi in calls:
            shown = np.arange(length) < np.full((len(case.ids), 1), hi)
            window = np.arange(lo, hi)
            found = ask(session, case.ids[:, lo:hi], shown, window, kept, lo)
            worst = np.abs(found["l1"] - logits[:, lo:hi].max(-1)).max()
            assert worst <= TWO_FP32, (name, lo, hi)


def left_padded(case: LogitsCase, padding: list[int]) -> tuple[Ints, Bools]:
    """Rows of a case, each behind so many pad tokens and cut to one length."""
    length = case.ids.shape[1]
    ids = np.stack([np.roll(row, pad) for row, pad in zip(case.ids, padding, strict=True)])
    return ids, np.arange(length) >= np.asarray(padding)[:, None]


@pytest.mark.parametrize("padding", [[0, 3], [5, 1], [4, 8]])
def test_left_padding_moves_no_block_border(padding: list[int]) -> None:
    """Rows are what they are alone, in one call, and in calls that end where a block of each ends.

    A call that ended within a block of some row would feed a part of that without the rest.
    """
    case = next(case for case in BLOCK_CASES if len(case.ids) == 2)
    session = session_of("sdar", 4)
    ids, shown = left_padded(case, padding)
    length = ids.shape[1]
    plain, kept = ask(session, ids, shown, np.arange(length)), session.new_cache(2, length)
    aligned = (padding[0] - padding[1]) % 4 == 0
    edges = [0, *range(padding[0] + 4, length, 4), length] if aligned else [0, length]
    parts = [
        ask(session, ids[:, lo:hi], shown & (np.arange(length) < hi), np.arange(lo, hi), kept, lo)
        for lo, hi in pairwise(edges)
    ]
    again = np.concatenate([part["l1"] for part in parts], 1)
    for row, pad in enumerate(padding):
        alone = ask(session, case.ids[row : row + 1], shown[:1] | True, np.arange(length))
        for found in (plain["l1"], again):
            apart = np.abs(found[row, pad:] - alone["l1"][0, : length - pad])
            # tokens that were cut off at the end of this row's last block are not seen
            whole = (length - pad) // 4 * 4
            assert apart[:whole].max() <= TWO_FP32


# Calls


def test_a_call_without_a_window_fills_the_cache_alone() -> None:
    session, case = session_of("sdar", 4), BLOCK_CASES[0]
    filled, asked = (session.new_cache(*case.ids.shape) for _ in range(2))
    shown = np.ones(case.ids.shape, np.bool_)
    found = ask(session, case.ids, shown, np.zeros(0, np.int64), filled)
    assert {name: array.shape for name, array in found.items()} == dict.fromkeys(
        ALL, (len(case.ids), 0)
    )
    ask(session, case.ids, shown, np.asarray([2]), asked)
    assert torch.equal(filled.keys, asked.keys)
    assert torch.equal(filled.values, asked.values)
    assert filled.keys.any()


@pytest.mark.parametrize("tokens", [1, 30])
def test_rows_in_flight_use_their_own_keys(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    session, case = session_of("dream"), padded_case("dream")
    window = np.arange(9, 17)
    results = []
    for count in (10**6, tokens):
        monkeypatch.setattr(float_session, "TOKENS_AT_ONCE", count)
        kept = session.new_cache(*case.ids.shape)
        ask(session, case.ids, case.key_mask, window, kept)
        results.append(ask(session, case.ids[:, 8:16] + 1, case.key_mask, window, kept, 8))
    assert np.abs(results[0]["l1"] - results[1]["l1"]).max() <= TWO_FP32


def test_a_cache_knows_its_size() -> None:
    kept = session_of("dream").new_cache(3, 17)
    assert isinstance(kept, FloatCache)
    assert (kept.rows, kept.length) == (3, 17)
    assert kept.keys.shape == (3, 3, 2, 17, 16)


@pytest.mark.parametrize("bits", [8, 4])
def test_fewer_bits_are_off_by_half_a_step(bits: int) -> None:
    checkpoint, case = golden("llada"), padded_case("llada")
    session = FloatSession(FloatModel(checkpoint, kv_bits=bits), checkpoint.spec.vocab_size)
    exact, kept = (one.new_cache(*case.ids.shape) for one in (session_of("llada"), session))
    for one, memory in ((session_of("llada"), exact), (session, kept)):
        ask(one, case.ids, case.key_mask, np.arange(4), memory)
    for real, rounded in ((exact.keys[0], kept.keys[0]), (exact.values[0], kept.values[0])):
        step = real.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
        # quotient and product round by 2^-24 of at most 127 steps
        assert ((real - rounded).abs() <= step * (0.5 + 4 * 128 * 2**-24)).all()
        assert len((rounded / step).round().unique()) <= 2**bits - 1
        assert not torch.equal(real, rounded)


# Operands on grids


GRIDS = {
    "8 bits": AttentionGrid(q_bits=8, k_bits=8, v_bits=8),
    "4 bits": AttentionGrid(q_bits=4, k_bits=4, v_bits=4),
    "no mean": AttentionGrid(k_bits=4, key_mean=False),
}


def attended(spec: Spec, grid: AttentionGrid, steps: list[slice]) -> Iterator[Array]:
    """What attention of one block makes of the same inputs, in calls that feed these positions."""
    layer = Layer(golden("sdar").block(0), attention=grid)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, spec.width, generator=draw)
    valid = torch.arange(16) >= torch.tensor([[0], [4]])
    empty = torch.zeros(1, 2, spec.kv_heads, 16, spec.head_dim)
    kept = FloatCache(empty, empty.clone())
    for fed in steps:
        shown = valid & (torch.arange(16) < fed.stop)
        context = make_context(spec, shown, fed)
        context = replace(context, kept=kept.kept(0, slice(0, 2), fed.start))
        yield attend(spec, layer, x[:, fed], context).numpy()


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_rounding_keeps_a_block_causal_cache_exact(grid: AttentionGrid) -> None:
    """A query does not learn of later keys by the rounding of earlier ones.

    Operands are equal bit for bit, so are their codes; sums over 16 keys are taken in another
    order, of values below 8.
    """
    spec = golden("sdar").spec
    (whole,) = attended(spec, grid, [slice(0, 16)])
    parts = list(attended(spec, grid, [slice(0, 8), slice(8, 12), slice(8, 16)]))
    apart = np.abs(np.concatenate([parts[0], parts[2]], 1) - whole)
    scale = np.abs(whole).max()
    apart[1, :4] = 0  # padding
    assert apart.max() <= 64 * np.finfo(np.float32).eps * scale
