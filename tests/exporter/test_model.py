"""The float model: upstream's logits, attention by hand, and blocks that change while they run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter import float_session
from exporter.checkpoint import open_checkpoint
from exporter.families import Spec
from exporter.float_session import FloatModel, FloatSession
from exporter.layer import Layer
from exporter.model import GROUPS, Context, attend, make_context, rms_norm, run_block, trace_block
from tests.fixtures_lower import (
    FP32_ERROR,
    GOLDEN_FAMILIES,
    TWO_FP32,
    LogitsCase,
    golden,
    golden_variant,
    logits_cases,
)
from tests.numpy_model import load_numpy_model

CASES = [(family, case) for family in GOLDEN_FAMILIES for case in logits_cases(family)]
each_case = pytest.mark.parametrize(
    ("family", "case"), CASES, ids=[f"{family}-{case.name}" for family, case in CASES]
)
each_family = pytest.mark.parametrize("family", GOLDEN_FAMILIES)
ALL = frozenset({"id1", "l1", "rest", "l2", "topk_ids", "topk_logits", "entropy", "rest_t"})
EPS = float(torch.finfo(torch.float32).eps)


def padded_case(family: str) -> LogitsCase:
    return next(case for case in logits_cases(family) if not case.key_mask.all())


def logits_of(model: FloatModel, case: LogitsCase) -> torch.Tensor:
    """Raw logits at the real positions, (N, V)."""
    found = model.logits(torch.from_numpy(case.ids), torch.from_numpy(case.key_mask))
    return found[torch.from_numpy(case.key_mask)]


@each_case
def test_logits_are_those_of_upstream(family: str, case: LogitsCase) -> None:
    found = logits_of(FloatModel(golden(family)), case).numpy()
    assert np.abs(found - case.logits[case.key_mask]).max() <= TWO_FP32


@each_case
def test_float64_agrees_with_upstream(family: str, case: LogitsCase) -> None:
    """What the tolerances of these tests rest on: one fp32 evaluation against float64."""
    exact = load_numpy_model(golden(family).folder).logits(case.ids, case.key_mask)
    assert np.abs(exact - case.logits)[case.key_mask].max() <= 1.25 * FP32_ERROR


@each_family
def test_streamed_blocks_give_what_kept_blocks_give(family: str) -> None:
    case, kept = padded_case(family), FloatModel(golden(family))
    first = logits_of(kept, case)
    streaming = FloatModel(golden(family), keep=0)
    assert torch.equal(logits_of(streaming, case), first)
    assert torch.equal(logits_of(kept, case), first)
    again = [list(zip(model.blocks(), model.blocks(), strict=True)) for model in (kept, streaming)]
    assert all(a is b for a, b in again[0])
    assert not any(a is b for a, b in again[1])


@each_family
@pytest.mark.parametrize("tokens", [1, 30, 60])
def test_a_batch_is_the_sum_of_its_rows(
    family: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many sequences are in flight, with padding or without."""
    cases = [case for case in logits_cases(family) if case.ids.shape == (2, 28)]
    ids, mask, want = (
        np.concatenate([getattr(case, name) for case in cases])
        for name in ("ids", "key_mask", "logits")
    )
    assert len(ids) == 4
    monkeypatch.setattr(float_session, "TOKENS_AT_ONCE", tokens)
    case = LogitsCase("all", ids, mask, want)
    found = logits_of(FloatModel(golden(family)), case).numpy()
    assert np.abs(found - want[mask]).max() <= TWO_FP32


@each_family
def test_the_head_may_come_in_slices(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = padded_case(family)
    monkeypatch.setattr(float_session, "VOCAB_AT_ONCE", 50)
    found = logits_of(FloatModel(golden(family)), case).numpy()
    assert np.abs(found - case.logits[case.key_mask]).max() <= TWO_FP32


@each_family
def test_the_session_aligns_shifted_logits(family: str) -> None:
    """Row i − 1 of Dream predicts position i, position 0 keeps its own; LLaDA is not shifted."""
    case, checkpoint = padded_case(family), golden(family)
    window = np.asarray([0, 5, 6, 11, 27])
    bias = np.zeros((2, 1), np.float32)
    session = FloatSession(FloatModel(checkpoint), checkpoint.spec.vocab_size)
    found = session.forward(case.ids, case.key_mask, window, bias, None, None, ALL)
    rows = np.maximum(window - 1, 0) if family == "dream" else window
    want = case.logits[:, rows].astype(np.float64)
    want[..., checkpoint.spec.mask_id] = -np.inf
    real = case.key_mask[:, rows]
    assert np.abs(found["l1"] - want.max(-1))[real].max() <= TWO_FP32
    assert np.array_equal(found["id1"][real], want.argmax(-1)[real])


# Attention


def attention_by_hand(
    spec: Spec,
    w: dict[str, torch.Tensor],
    x: torch.Tensor,
    positions: torch.Tensor,
    sees: list[list[list[int]]],
) -> torch.Tensor:
    """Attention in float64, one query at a time, which sees the listed keys alone."""
    w = {name: tensor.double() for name, tensor in w.items()}
    x, half, each = x.double(), spec.head_dim // 2, spec.heads // spec.kv_heads
    out = torch.zeros(*x.shape[:2], spec.heads, spec.head_dim, dtype=torch.float64)

    def head(name: str, b: int, s: int, h: int) -> torch.Tensor:
        rows = slice(h * spec.head_dim, (h + 1) * spec.head_dim)
        y = w[name][rows] @ x[b, s]
        if spec.qkv_bias:
            y = y + w[f"{name}_bias"][rows]
        if name == "v":
            return y
        if spec.qk_norm:
            y = y / (y.square().mean() + spec.norm_eps).sqrt() * w[f"{name}_norm"]
        turned = torch.empty_like(y)
        for i in range(half):
            angle = positions[b, s].double() * spec.rope_theta ** (-2 * i / spec.head_dim)
            turned[i] = y[i] * angle.cos() - y[i + half] * angle.sin()
            turned[i + half] = y[i + half] * angle.cos() + y[i] * angle.sin()
        return turned

    for b, rows in enumerate(sees):
        for s, keys in enumerate(rows):
            for h in range(spec.heads):
                q = head("q", b, s, h)
                k = torch.stack([head("k", b, j, h // each) for j in keys])
                v = torch.stack([head("v", b, j, h // each) for j in keys])
                out[b, s, h] = torch.softmax(k @ q / spec.head_dim**0.5, 0) @ v
    return out.flatten(-2)


SPEC = replace(golden("llada").spec, width=24, heads=4, kv_heads=4, head_dim=6)
VARIANTS = {
    "plain": SPEC,
    "grouped queries": replace(SPEC, kv_heads=2),
    "one key head": replace(SPEC, kv_heads=1),
    "biases": replace(SPEC, qkv_bias=True),
    "norms": replace(SPEC, qk_norm=True),
    "block-causal": replace(SPEC, attention="block-causal", block_length=3),
    "skip padding": replace(SPEC, positions="skip-padding"),
    "all": replace(
        SPEC, kv_heads=2, qkv_bias=True, qk_norm=True, attention="block-causal", block_length=2,
        positions="skip-padding",
    ),
}  # fmt: skip


def random_weights(spec: Spec) -> dict[str, torch.Tensor]:
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "q": (q, spec.width),
        "k": (kv, spec.width),
        "v": (kv, spec.width),
    }
    shapes |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
    shapes |= {"q_norm": (spec.head_dim,), "k_norm": (spec.head_dim,)}
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=draw) / 3 for name, shape in shapes.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_attention_is_the_textbook_one(name: str) -> None:
    spec, draw = VARIANTS[name], torch.Generator().manual_seed(1)
    w, x = random_weights(spec), torch.randn(2, 7, spec.width, generator=draw)
    if not spec.qkv_bias:
        w = {n: t for n, t in w.items() if not n.endswith("_bias")}
    real = torch.tensor([[False, False, True, True, True, True, True], [True] * 7])
    length = spec.block_length or 7
    first = [[0, 0, 0, 1, 2, 3, 4], list(range(7))]  # blocks and skipped padding count from here
    sees = [
        [[j for j in range(7) if real[b, j] and n[j] // length <= n[s] // length] for s in range(7)]
        for b, n in enumerate(first)
    ]
    positions = torch.tensor(first if spec.positions == "skip-padding" else [list(range(7))] * 2)
    want = attention_by_hand(spec, w, x, positions, sees)
    got = attend(spec, Layer(w), x, make_context(spec, real))
    # q, k, v sum 24 terms, a score 6, the mean of values 7, each exact to eps; an error of a score
    # counts as often as the score is large, here up to 4
    terms = 4 * (24 + 24 + 6) + 24 + 7
    assert (got - want).abs().max() <= terms * EPS * want.abs().max()


def test_nothing_is_masked_without_padding() -> None:
    assert make_context(SPEC, torch.ones(2, 5, dtype=torch.bool)).allowed is None


def test_norm_of_large_halves_does_not_overflow() -> None:
    """Squares of fp16 above 256 overflow fp16: they are summed in fp32."""
    x = torch.full((1, 8), 1000.0, dtype=torch.float16)
    found = rms_norm(x, torch.ones(8, dtype=torch.float16), 1e-5)
    assert torch.equal(found, torch.ones(1, 8, dtype=torch.float16))


# Blocks that change while they run


def block_of(family: str) -> tuple[Spec, dict[str, torch.Tensor], torch.Tensor, Context]:
    checkpoint, case = golden(family), padded_case(family)
    hidden = checkpoint.gather("embed", torch.from_numpy(case.ids))
    return (
        checkpoint.spec,
        checkpoint.block(0),
        hidden,
        make_context(checkpoint.spec, torch.from_numpy(case.key_mask)),
    )


@each_family
def test_a_block_stops_before_each_group_of_linears(family: str) -> None:
    spec, w, hidden, context = block_of(family)
    steps = list(trace_block(spec, Layer(w), hidden, context))
    assert [name for name, _ in steps] == [*(group.name for group in GROUPS), "out"]
    for group, (_, x) in zip(GROUPS, steps, strict=False):
        assert all(x.shape[-1] == w[linear].shape[1] for linear in group.linears)
    assert {linear for group in GROUPS for linear in group.linears} == {
        name for name, tensor in w.items() if tensor.dim() == 2
    }
    assert torch.equal(steps[-1][1], run_block(spec, Layer(w), hidden, context))


@each_family
@pytest.mark.parametrize("index", range(len(GROUPS)), ids=[group.name for group in GROUPS])
def test_what_follows_a_stop_runs_with_new_weights(family: str, index: int) -> None:
    """Linears replaced at the stop before them count; the input at that stop does not change."""
    spec, w, hidden, context = block_of(family)
    changed = {**w, **{name: 0.5 * w[name] for name in GROUPS[index].linears}}
    before = list(trace_block(spec, Layer(w), hidden, context))
    seen = []
    for name, x in trace_block(spec, Layer(w), hidden, context):
        seen.append((name, x))
        if name == GROUPS[index].name:
            w.update(changed)
    after = list(trace_block(spec, Layer(changed), hidden, context))
    assert all(torch.equal(x, new) for (_, x), (_, new) in zip(seen, after, strict=True))
    assert torch.equal(seen[index][1], before[index][1])
    assert not torch.equal(seen[-1][1], before[-1][1])


@each_family
def test_a_replacement_comes_too_late_after_its_group(family: str) -> None:
    spec, w, hidden, context = block_of(family)
    want = run_block(spec, Layer(dict(w)), hidden, context)
    for name, x in trace_block(spec, Layer(w), hidden, context):
        last = x
        if name == GROUPS[1].name:
            w.update({linear: w[linear] * 0 for linear in ("q", "k", "v")})
    assert torch.equal(last, want)


def test_a_tied_model_runs(tmp_path: Path) -> None:
    """Dream with the embedding as its head, against the same model with the copy written out."""
    case, embed = padded_case("dream"), golden("dream").tensor("embed")
    untied = golden_variant("dream", tmp_path / "a", tensors={"lm_head.weight": embed})
    tied = golden_variant("dream", tmp_path / "b", {"tie_word_embeddings": True})
    a, b = (logits_of(FloatModel(open_checkpoint(folder)), case) for folder in (untied, tied))
    assert torch.equal(a, b)
