"""Settings refuse what cannot be decoded, with the values and a way out."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.runtime.errors import UserError
from exporter.runtime.settings import Settings, check_blocks


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"sampler": "best"}, "unknown sampler 'best'"),
        ({"cache": "some"}, "unknown cache 'some'"),
        ({"gen_length": -1}, "gen_length -1"),
        ({"steps": 0}, "steps 0"),
        ({"block_length": 0}, "block_length 0"),
        ({"threshold": 0.0}, "threshold 0.0"),
        ({"threshold": 1.5}, "threshold 1.5"),
        ({"factor": 0.0}, "factor 0.0"),
        ({"cfg_scale": -0.5}, "cfg_scale -0.5"),
        ({"eps": 0.0}, "eps 0.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_k": 0}, "top_k 0"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"alg_temp": -1.0}, "alg_temp -1.0"),
        ({"seed": -1}, "seed -1"),
        ({"initial_length": 0}, "initial_length 0"),
        ({"growth": 1}, "growth 1"),
        ({"eos_threshold": 0.0}, "eos_threshold 0.0"),
        ({"eos_window": 0}, "eos_window 0"),
        ({"credit_alpha": -1.0}, "credit_alpha -1.0"),
        ({"credit_beta": 1.5}, "credit_beta 1.5"),
        ({"credit_gamma": float("nan")}, "credit_gamma nan"),
        ({"keep_threshold": 0.0}, "keep_threshold 0.0"),
        ({"confidence_eos_inf": True, "temperature": 0.5}, "confidence_eos_inf"),
        ({"confidence_eos_inf": True, "sampler": "entropy"}, "confidence_eos_inf"),
    ],
)
def test_out_of_range_is_an_error_with_the_value(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Settings(**wrong)


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 200))
def test_the_hint_for_a_block_that_does_not_divide_works(length: int, block: int) -> None:
    try:
        check_blocks(Settings(gen_length=length, block_length=block))
    except UserError as error:
        words = error.hint.split()
        check_blocks(Settings(gen_length=int(words[2]), block_length=block))
        check_blocks(Settings(gen_length=length, block_length=int(words[5])))
    else:
        assert length % block == 0


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 100))
def test_the_hint_for_steps_that_do_not_divide_works(blocks: int, steps: int) -> None:
    try:
        check_blocks(Settings(gen_length=8 * blocks, block_length=8, steps=steps))
    except UserError as error:
        steps = int(error.hint.split()[2])
        check_blocks(Settings(gen_length=8 * blocks, block_length=8, steps=steps))
    else:
        assert steps % blocks == 0


def test_canvas_samplers_and_threshold_know_no_divisions() -> None:
    assert Settings(sampler="entropy", gen_length=33, block_length=32, steps=7).by_canvas
    assert not Settings(sampler="threshold", gen_length=64, steps=7).by_quota
