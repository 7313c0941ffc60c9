"""Decoding defaults: from options, generation_config.json and family; schedules for calibration."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.decoding import (
    BY_BLOCK,
    MAX_CANVAS,
    MODEL_CALLS,
    DecodeOptions,
    comparable,
    default_settings,
    describe_model,
    for_answer,
    longest_canvas,
    loop_facts,
    most_calls,
    with_room,
)
from exporter.errors import UserError
from exporter.manifest import ModelFacts
from exporter.runtime.errors import UserError as RuntimeUserError
from exporter.runtime.settings import BLOCK_SAMPLERS, CACHES, CANVAS_SAMPLERS, Settings
from tests.fixtures_lower import GOLDEN, golden, golden_variant

NOTHING = DecodeOptions()


def with_generation(tmp_path: Path, family: str, content: object) -> Checkpoint:
    folder = golden_variant(family, tmp_path / family)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "generation_config.json").write_text(text)
    return open_checkpoint(folder)


def test_a_family_has_its_upstream_rule() -> None:
    assert default_settings(golden("llada"), NOTHING) == Settings(sampler="low-confidence")
    assert default_settings(golden("dream"), NOTHING).sampler == "entropy"


def test_block_causal_families_have_the_exact_cache_and_their_own_blocks() -> None:
    sdar = default_settings(golden("sdar"), NOTHING)
    assert sdar == Settings(sampler="sdar-dynamic", cache="exact", block_length=4)
    llada2 = default_settings(open_checkpoint(GOLDEN / "llada2", 206), DecodeOptions(gen_length=50))
    assert (llada2.sampler, llada2.gen_length, llada2.block_length) == ("llada2-threshold", 50, 32)


def test_another_block_length_than_that_of_the_attention_is_refused() -> None:
    assert default_settings(golden("sdar"), DecodeOptions(block_length=4)).block_length == 4
    with pytest.raises(UserError, match="length of 8 does not go with attention in blocks of 4"):
        default_settings(golden("sdar"), DecodeOptions(block_length=8))


def test_sdar_has_its_generation_config(tmp_path: Path) -> None:
    content = {
        "remasking_strategy": "low_confidence_static",
        "denoising_steps": 2,
        "threshold": 0.7,
    }
    found = default_settings(with_generation(tmp_path, "sdar", content), NOTHING)
    assert (found.sampler, found.steps, found.threshold) == ("sdar-static", 2, 0.7)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"max_new_tokens": 64, "steps": 16}, {"gen_length": 64, "steps": 16}),
        ({"gen_length": 64, "block_length": 16}, {"gen_length": 64, "block_length": 16}),
        ({"alg": "maskgit_plus", "eps": 0.01}, {"sampler": "maskgit-plus", "eps": 0.01}),
        ({"alg": "topk_margin"}, {"sampler": "topk-margin"}),
        ({"alg": "low_confidence"}, {"sampler": "low-confidence"}),
        ({"alg": "origin", "steps": None}, {"sampler": "origin"}),
        ({"eos_token_id": 1, "temperature": 0.7, "unknown": {}}, {}),
        ({}, {}),
    ],
)
def test_generation_config_gives_defaults(
    content: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = with_generation(tmp_path, "dream", content)
    plain = Settings(sampler="entropy")
    assert default_settings(checkpoint, NOTHING) == replace(plain, **expected)


def test_options_win_over_generation_config(tmp_path: Path) -> None:
    content = {"alg": "maskgit_plus", "max_new_tokens": 64, "steps": 16, "block_length": 16}
    checkpoint = with_generation(tmp_path, "dream", content)
    options = DecodeOptions("threshold", gen_length=32, block_length=8)
    found = default_settings(checkpoint, options)
    assert (found.sampler, found.gen_length, found.block_length) == ("threshold", 32, 8)
    assert found.steps == 16


def test_a_short_answer_is_one_block() -> None:
    found = default_settings(golden("llada"), DecodeOptions(gen_length=12))
    assert (found.gen_length, found.block_length) == (12, 12)


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        ('{"steps": ', "is not JSON"),
        ("[1]", "holds list"),
        ({"alg": "annealing"}, "unknown sampler 'annealing'"),
        ({"steps": -4}, "steps -4 is out of range"),
        ({"max_new_tokens": "many"}, "max_new_tokens = 'many'"),
        ({"eps": [1]}, r"eps = \[1\]"),
        ({"alg": 7}, "alg = 7"),
        ({"steps": 2.5}, "steps = 2.5"),
    ],
)
def test_a_generation_config_that_cannot_be_used_is_refused(
    content: object, seen: str, tmp_path: Path
) -> None:
    checkpoint = with_generation(tmp_path, "dream", content)
    with pytest.raises(UserError, match=seen) as error:
        default_settings(checkpoint, NOTHING)
    assert error.value.hint


def test_options_that_do_not_divide_are_refused_with_a_way_out() -> None:
    with pytest.raises(UserError, match="gen_length 50 is not a multiple of block_length 32") as e:
        default_settings(golden("llada"), DecodeOptions(gen_length=50))
    assert "--gen-length 64" in e.value.hint


# The longest canvas


def test_the_canvas_is_what_the_model_was_trained_for() -> None:
    llada = golden("llada")
    assert longest_canvas(llada, NOTHING, Settings()) == 256
    assert longest_canvas(llada, DecodeOptions(max_canvas=200), Settings()) == 200
    long = replace(llada, spec=replace(llada.spec, max_length=131072))
    assert longest_canvas(long, NOTHING, Settings()) == MAX_CANVAS
    assert longest_canvas(long, DecodeOptions(max_canvas=5000), Settings()) == 5000


@pytest.mark.parametrize(("canvas", "length"), [(128, 128), (100, 128), (257, 128), (None, 256)])
def test_a_canvas_without_room_is_refused_with_numbers(canvas: int | None, length: int) -> None:
    settings = Settings(gen_length=length)
    wanted = canvas or 256
    message = f"canvas of {wanted} tokens .* takes {length}, .* trained for 256"
    with pytest.raises(UserError, match=message) as error:
        longest_canvas(golden("llada"), DecodeOptions(max_canvas=canvas), settings)
    assert f"between {length + 1} and 256" in error.value.hint


# Schedules of calibration and gate


@st.composite
def deployed(draw: st.DrawFn) -> Settings:
    """Any settings that the loop accepts."""
    block, blocks = draw(st.integers(1, 64)), draw(st.integers(1, 40))
    steps = draw(st.none() | st.integers(1, 40).map(lambda n: n * blocks))
    sampler = draw(st.sampled_from(BLOCK_SAMPLERS + CANVAS_SAMPLERS))
    try:
        return Settings(
            sampler=sampler,
            gen_length=block * blocks,
            block_length=block,
            steps=steps,
            cfg_scale=draw(st.sampled_from([0.0, 1.0])),
            temperature=draw(st.sampled_from([0.0, 0.8])),
            top_k=draw(st.none() | st.just(5)),
            top_p=draw(st.none() | st.just(0.9)),
            alg_temp=draw(st.none() | st.just(0.5)),
            cache=draw(st.sampled_from(CACHES)),
            eos_inf=draw(st.booleans()),
            confidence_eos_inf=draw(st.booleans()),
        )
    except RuntimeUserError:
        assume(False)
        raise


@given(deployed())
def test_schedules_are_made_comparable(settings: Settings) -> None:
    """No chance, no guidance, no stop; the same rule or what it builds on, and lengths."""
    found = comparable(settings)
    if settings.rule.stand_in:
        assert found.sampler == settings.rule.stand_in
        settings = replace(settings, sampler=found.sampler)
    assert found.cache == ("exact" if settings.cache == "exact" else "none")
    kept = ("sampler", "gen_length", "block_length", "threshold", "factor", "eps")
    assert all(getattr(found, name) == getattr(settings, name) for name in kept)
    assert (found.temperature, found.cfg_scale, found.early_stop) == (0.0, 0.0, False)
    assert (found.top_k, found.top_p, found.alg_temp) == (None, None, None)
    assert (found.eos_inf, found.confidence_eos_inf) == (False, False)
    assert not found.reshapes
    blocks = 1 if settings.by_canvas else settings.gen_length // settings.block_length
    wanted, calls = settings.steps or settings.gen_length, found.steps or found.gen_length
    if settings.rule.schedule in BY_BLOCK:
        wanted, calls = most_calls(settings), most_calls(found)
    assert calls <= max(MODEL_CALLS, blocks)  # a block takes one call at least
    assert calls == wanted or wanted > MODEL_CALLS
    assert calls > min(wanted, MODEL_CALLS) / 2
    assert comparable(found) == found


def test_an_answer_of_its_own_length_keeps_the_rate() -> None:
    half = Settings(gen_length=32, block_length=8, steps=16)
    found = for_answer(half, 12, block_causal=False)
    assert (found.gen_length, found.block_length, found.steps) == (12, 4, 12)
    assert for_answer(half, None, block_causal=False) == half
    blocks = Settings(sampler="sdar-static", gen_length=32, block_length=8, steps=4)
    assert for_answer(blocks, 13, block_causal=True) == replace(blocks, gen_length=13)


def test_calls_of_a_roll_out_are_bounded_by_the_rule() -> None:
    plan = Settings(gen_length=32, block_length=8, steps=16)
    assert most_calls(plan) == 16
    assert most_calls(replace(plan, sampler="threshold")) == 32
    assert most_calls(replace(plan, sampler="sdar-dynamic", steps=3)) == 12
    assert most_calls(replace(plan, sampler="sdar-dynamic", steps=9)) == 32
    assert most_calls(replace(plan, sampler="llada2-edit", max_post_steps=2)) == 32 + 4 * 3


def test_a_large_cache_is_left_out() -> None:
    """Of sdar: 2 layers of 2 heads of 32 channels, keys and values in fp32: 1 KiB a position."""
    exact, spec = Settings(sampler="sdar-static", cache="exact"), golden("sdar").spec
    assert with_room(exact, spec, 1024, 1024) == exact
    assert with_room(exact, spec, 1024, 1025).cache == "none"


# What the loop is told


def test_facts_are_those_of_the_checkpoint() -> None:
    checkpoint = open_checkpoint(GOLDEN / "llada", eot_id=197)
    facts = describe_model(checkpoint, "d" * 64, 203, 128)
    spec = checkpoint.spec
    assert (facts.name, facts.checkpoint, facts.parameters) == (
        "llada",
        "d" * 64,
        checkpoint.parameters,
    )
    assert (facts.vocab_size, facts.head_rows, facts.max_length) == (203, 208, 128)
    assert facts.special_ids == [193, 197]
    for name in ModelFacts.model_fields.keys() & vars(spec).keys() - {"vocab_size", "max_length"}:
        assert getattr(facts, name) == getattr(spec, name), name
    read = loop_facts(facts)
    assert read.special_ids == (193, 197)
    assert (read.vocab_size, read.max_length, read.mask_id) == (203, 128, 200)
