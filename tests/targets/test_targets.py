"""Every target loads, and its statements agree with each other and with the hardware."""

import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

import targets

EVERY = [targets.load(name) for name in targets.names()]
each_target = pytest.mark.parametrize("target", EVERY, ids=[t.name for t in EVERY])

DESIGNED = (
    {"cpu", "cuda", "rtx-30", "rtx-40", "rtx-50", "tensorrt", "jetson-thor"}
    | {"jetson-orin" + suffix for suffix in ("", "-nx", "-nano", "-jp62")}
    | {"jetson-thor-jp71"}
)


def test_the_designed_targets_are_there() -> None:
    assert set(targets.names()) == DESIGNED


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


@each_target
def test_number_formats_exist_on_every_listed_gpu(target: targets.Target) -> None:
    first = {"fp8": 89, "nvfp4": 100, "bf16": 80}  # compute capability that brought the format
    for name, least in first.items():
        if name in target.formats:
            assert target.sm is not None
            assert min(target.sm) >= least
    assert set(target.activations) <= set(target.formats)
    assert target.compute in target.formats
    assert {f"int{bits}" for bits in target.weight_bits} <= set(target.formats)


@each_target
def test_orin_has_neither_fp8_nor_fp4(target: targets.Target) -> None:
    if target.sm == (87,):
        assert not {"fp8", "nvfp4"} & set(target.formats + target.activations)


@each_target
def test_runtime_decides_which_facts_are_given(target: targets.Target) -> None:
    onnxruntime = target.runtime == "onnxruntime"
    assert bool(target.providers) == onnxruntime
    assert (target.tensorrt is None) == onnxruntime
    assert (target.engine_built == "none") == onnxruntime
    assert not (onnxruntime and target.plugins)
    assert (target.sm is None) == (target.cuda is None)


@each_target
def test_tensorrt_version_decides_opset_attention_and_plugins(target: targets.Target) -> None:
    if target.runtime != "tensorrt":
        return
    assert target.tensorrt is not None
    release = version(target.tensorrt)
    assert target.native_attention == (release >= (10, 14))
    assert ("qdp" in target.plugins) == (release >= (10, 9))  # with kernels inside the engine
    assert target.opset <= (24 if release >= (10, 15) else 21)  # 24 brings TensorScatter


@each_target
def test_what_tensorrt_does_not_read_is_not_written_for_it(target: targets.Target) -> None:
    """Measured with TensorRT for RTX 1.7.1; tests marked trt hold that it is so."""
    if target.runtime != "onnxruntime":
        assert target.fixed_capacity and target.cache_bits == (16, 8, 4)
        assert {"kv-update", "cached-attention"} <= set(target.operators)  # which fewer bits take
        assert target.embed_bits == (16,)
        assert not target.uneven_groups and not target.widens_int4
    if target.runtime == "onnxruntime":
        assert target.cache_bits == (16, 8, 4) and not target.fixed_capacity
        assert target.uneven_groups and target.widens_int4


@each_target
def test_memory_and_bandwidth_are_known_together(target: targets.Target) -> None:
    assert (target.memory_gib is None) == (target.bandwidth_gb_s is None)


@each_target
def test_rates_are_those_of_dense_matrices_in_a_known_mode(target: targets.Target) -> None:
    """Tensor cores of these chips multiply bytes twice as fast as halves (within the rounding
    of published figures), and one power mode is what bandwidth and rates hold in.
    """
    assert (target.tops is None) == (target.power_mode is None)
    assert target.reserved_gib == 0 or target.reserved_gib < (target.memory_gib or 0) / 4
    if target.tops is not None:
        assert target.bandwidth_gb_s is not None and target.reserved_gib > 0
        assert target.tops["int8"] == pytest.approx(2 * target.tops["fp16"], rel=0.01)


def test_variants_of_a_board_are_the_same_board() -> None:
    for name, variant in (("jetson-orin", "-jp62"), ("jetson-thor", "-jp71")):
        one, other = targets.load(name), targets.load(name + variant)
        for fact in ("memory_gib", "reserved_gib", "bandwidth_gb_s", "tops", "power_mode", "sm"):
            assert getattr(one, fact) == getattr(other, fact)


@each_target
def test_what_a_build_makes_is_said(target: targets.Target) -> None:
    assert target.build.startswith("Builds")
    assert target.build.endswith(".")


@each_target
def test_recipe_uses_a_width_that_the_target_is_fast_at(target: targets.Target) -> None:
    assert int(target.default_recipe[1]) in target.weight_bits


def test_unknown_name_lists_close_matches() -> None:
    with pytest.raises(ValueError, match=r"'jetson-orim'.*did you mean jetson-orin.*known are cpu"):
        targets.load("jetson-orim")
    with pytest.raises(ValueError, match=r"'\?\?\?': known are cpu"):
        targets.load("???")


def test_a_misspelt_property_is_refused() -> None:
    text = (Path(targets.__file__).parent / "cpu.toml").read_text(encoding="utf-8")
    values = {"name": "cpu", **tomllib.loads(text), "weigth_bits": [4]}
    with pytest.raises(ValidationError, match="weigth_bits"):
        targets.Target.model_validate(values)
