"""Floors by hand for small shapes; what must rise does; what an 8B model comes to on boards."""

import math
from dataclasses import replace

import pytest

import targets
from exporter.families import Spec, block_shapes
from exporter.inspect import prediction_lines
from exporter.linear_groups import group_of_each
from exporter.manifest import PredictedForward, Prediction
from exporter.operator_use import OperatorUse, operator_use
from exporter.planner import cache_bytes, estimate
from exporter.predict import Work, arithmetic, attention, head, linears, predict
from exporter.quant_options import QuantOptions
from exporter.recipes import Recipe, make_recipe
from exporter.runtime.settings import Settings
from tests.fixtures_lower import golden

ORIN = targets.load("jetson-orin")
PLUGINS = operator_use(ORIN, True, 0)
LEVEL_4 = operator_use(ORIN, True, 4)


def small() -> Spec:
    return replace(
        golden("llada").spec, layers=2, width=256, heads=4, kv_heads=2, head_dim=64, mlp_width=512,
        vocab_size=1000,
    )  # fmt: skip


def large() -> Spec:
    """LLaDA-8B at its published sizes."""
    return replace(
        golden("llada").spec, layers=32, width=4096, heads=32, kv_heads=32, head_dim=128,
        mlp_width=12288, vocab_size=126464,
    )  # fmt: skip


def recipe(spec: Spec, name: str, **options: int) -> Recipe:
    return make_recipe(name, spec, QuantOptions(**options), "fp16")  # type: ignore[arg-type]


def predicted(spec: Spec, name: str, canvas: int = 1024, **options: int) -> Prediction:
    found = predict(spec, recipe(spec, name, **options), ORIN, PLUGINS, Settings(), canvas)
    assert found is not None
    return found


def test_linears_by_hand() -> None:
    """Two blocks of q and o 256 x 256, k and v 128 x 256, gate, up and down 512 x 256."""
    spec = small()
    count = 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 512 * 256)
    work = linears(spec, recipe(spec, "fp16"), PLUGINS, 10)
    assert work == Work(2 * count, {"fp16": 2 * 10 * count, "int8": 0})
    narrow = linears(spec, recipe(spec, "w4a16-rtn"), PLUGINS, 10)
    # inputs in groups of 128, a scale of two bytes each
    assert narrow == Work(count / 2 + count / 128 * 2, {"fp16": 2 * 10 * count, "int8": 0})


def test_attention_by_hand() -> None:
    """Two products of 32 queries of 4 heads of 64 with 100 keys, in two blocks."""
    spec = small()
    work = attention(spec, recipe(spec, "fp16"), PLUGINS, 1, 32, 100, cached=True)
    assert work.operations == {"fp16": 2 * 2 * (2 * 4 * 32 * 100 * 64)}
    # keys and values of 2 heads of 64, fp16, in two blocks: 100 read and 32 written
    assert work.bytes == 132 * (2 * 2 * 2 * 64 * 2)
    rounded = attention(spec, recipe(spec, "w8a8-rtn"), PLUGINS, 1, 32, 100, cached=False)
    assert rounded == Work(0, {"int8": work.operations["fp16"]})


def test_head_by_hand() -> None:
    spec = small()
    assert head(spec, recipe(spec, "fp16"), 7) == Work(2 * 256000, {"fp16": 2 * 7 * 256000})
    quantized = head(spec, recipe(spec, "w4a16-rtn", head_bits=8), 7)
    assert quantized == Work(256000 + 256000 / 128 * 2, {"fp16": 2 * 7 * 256000})


def test_a_kind_takes_the_longer_of_both() -> None:
    """1e9 bytes at 1e11 a second are 10 ms; 1e12 and 5e11 operations at 1e14 and 5e13 are 20."""
    work = Work(1e9, {"int8": 1e12, "fp16": 5e11})
    assert work.seconds(1e11, {"int8": 1e14, "fp16": 5e13}) == pytest.approx((0.01, 0.02))


def test_the_sum_of_a_forward() -> None:
    """What each kind takes on Orin, added up by hand; bytes and operations are those of all."""
    spec = small()
    plain, settings = recipe(spec, "w4a8-rtn"), Settings(block_length=16)
    found = predict(spec, plain, ORIN, PLUGINS, settings, 256)
    assert found is not None
    full, cached = found.forwards
    assert (full.graph, full.tokens, full.canvas) == ("full", 256, 256)
    assert (cached.graph, cached.tokens, cached.canvas) == ("cached", 16, 256)
    kinds = [
        linears(spec, plain, PLUGINS, 16),
        attention(spec, plain, PLUGINS, 1, 16, 256, True),
        head(spec, plain, 16),
    ]
    seconds = [
        max(
            work.bytes / 204.8e9,
            work.operations.get("int8", 0) / 85e12 + work.operations.get("fp16", 0) / 42.5e12,
        )
        for work in kinds
    ]
    assert cached.milliseconds == pytest.approx(1000 * sum(seconds), rel=1e-5)  # of six digits
    assert cached.bytes == round(sum(work.bytes for work in kinds))
    assert sum(cached.operations.values()) == sum(sum(w.operations.values()) for w in kinds)
    assert (found.bandwidth_gb_s, found.tops, found.power_mode) == (
        204.8, {"int8": 85, "fp16": 42.5}, "MAXN",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "use", "expected"),
    [
        ("fp16", PLUGINS, "fp16"),
        ("w4a16-rtn", PLUGINS, "fp16"),
        ("w4a16-rtn", OperatorUse(float_bits=16, weight_bits=(4,), plugins=True), "fp16"),
        ("w4a16-rtn", LEVEL_4, "int8"),  # rounded by operators of ours
        ("w8a16-rtn", LEVEL_4, "fp16"),  # which have 4-bit weights alone
        ("fp16", LEVEL_4, "fp16"),
        ("w8a8-rtn", PLUGINS, "int8"),
        ("w8a8-rtn", None, "int8"),  # standard operators multiply integers too
        ("w4a8-rtn", PLUGINS, "int8"),
        ("w4a4-rtn", PLUGINS, "int8"),
        ("w4a4-rtn", None, "fp16"),  # in groups: rounded, and multiplied as floats
        ("w8a8-rtn+group", PLUGINS, "fp16"),  # plugins know 4-bit weights alone
    ],
)
def test_arithmetic_of_recipes(name: str, use: OperatorUse | None, expected: str) -> None:
    spec = small()
    for group in group_of_each(spec, 0).values():
        assert arithmetic(recipe(spec, name), use, 0, group) == expected


def test_more_is_never_faster() -> None:
    spec = large()
    base = predicted(spec, "w4a8").forwards
    for other in (
        predicted(replace(spec, layers=33), "w4a8"),
        predicted(replace(spec, mlp_width=16384), "w4a8"),
        predicted(spec, "w4a8", canvas=2048),
    ):
        for before, after in zip(base, other.forwards, strict=True):
            assert after.milliseconds > before.milliseconds
            assert after.bytes >= before.bytes
    kept = predicted(spec, "w4a8", kv_bits=8).forwards[1]
    assert kept.bytes < base[1].bytes and kept.milliseconds < base[1].milliseconds


def test_faster_boards_are_faster() -> None:
    spec, settings = large(), Settings()
    plain = recipe(spec, "w4a8")
    boards = [targets.load(n) for n in ("jetson-orin-nano", "jetson-orin", "jetson-thor")]
    found = [predict(spec, plain, board, PLUGINS, settings, 512) for board in boards]
    for forward in (0, 1):
        times = [one.forwards[forward].milliseconds for one in found if one is not None]
        assert len(times) == 3 and times == sorted(times, reverse=True)


def test_guidance_doubles_rows_and_not_weights() -> None:
    spec, plain = large(), recipe(large(), "w4a16")
    once = predict(spec, plain, ORIN, PLUGINS, Settings(), 512)
    twice = predict(spec, plain, ORIN, PLUGINS, Settings(cfg_scale=1.0), 512)
    assert once is not None and twice is not None
    for one, two in zip(once.forwards, twice.forwards, strict=True):
        assert two.graph == one.graph + "-guided"
        # the counts are rounded each
        assert sum(two.operations.values()) == pytest.approx(2 * sum(one.operations.values()))
    cache = (512 + 32) * cache_bytes(spec, plain)
    assert twice.forwards[1].bytes - once.forwards[1].bytes == cache


def test_few_tokens_meet_few_experts() -> None:
    spec = golden("llada2").spec
    assert spec.experts is not None
    plain, experts = recipe(spec, "fp16"), spec.experts
    dense = sum(
        math.prod(shape)
        for index in range(spec.layers)
        for name, shape in block_shapes(spec, index).items()
        if name in group_of_each(spec, index) and not name.rpartition("_")[2].isdigit()
    )
    blocks = sum(experts.blocks)
    one = blocks * 3 * spec.width * experts.width  # an expert's weights, in all blocks
    single = linears(spec, plain, None, 1)
    # one token meets just its own experts
    assert single.bytes == pytest.approx(2 * (dense + experts.per_token * one))
    assert single.operations["fp16"] == pytest.approx(single.bytes)  # two a weight of two bytes
    many = linears(spec, plain, None, 10_000)
    assert many.bytes == pytest.approx(2 * (dense + experts.count * one))
    assert many.operations["fp16"] == pytest.approx(10_000 * single.operations["fp16"])


def test_what_is_not_known_is_not_predicted() -> None:
    spec = small()
    for name in ("cpu", "cuda", "rtx-40", "tensorrt"):
        target = targets.load(name)
        assert predict(spec, recipe(spec, "fp16"), target, None, Settings(), 64) is None
    assert prediction_lines(None) == []


def test_an_8b_model_on_orin() -> None:
    """15.0e9 operations a token over 1024 tokens are 15 T: 0.36 s in fp16, half of it in int8.

    A block's step is bound by reading 4-bit weights, about 4.4 GB, at 204.8 GB a second.
    """
    spec = large()
    floats, integers = predicted(spec, "w4a16").forwards, predicted(spec, "w4a8").forwards
    assert floats[0].bound == integers[0].bound == "arithmetic"
    assert floats[1].bound == integers[1].bound == "memory"
    assert floats[0].milliseconds == pytest.approx(350, rel=0.05)
    assert integers[0].milliseconds == pytest.approx(350 / 2, rel=0.05)
    assert floats[1].milliseconds == pytest.approx(4.6e9 / 204.8e6, rel=0.05)
    weights = estimate(spec, recipe(spec, "w4a16"), 1024).weights
    assert floats[0].bytes < weights  # the embedding is not read


def test_it_is_shown_line_by_line() -> None:
    found = predicted(large(), "w4a8")
    lines = prediction_lines(found)
    assert len(lines) == 3 and all(len(line) < 100 for line in lines)
    assert "204.8 GB/s" in lines[0] and "MAXN" in lines[0]
    for line, forward in zip(lines[1:], found.forwards, strict=True):
        assert forward.graph in line and forward.bound in line
        assert f"{forward.milliseconds:.3g} ms" in line
    again = Prediction.model_validate_json(found.model_dump_json())
    assert again == found and isinstance(again.forwards[0], PredictedForward)
