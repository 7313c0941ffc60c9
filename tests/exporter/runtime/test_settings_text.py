"""Settings as text: what is shown can be read, and nonsense is refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.runtime.errors import UserError
from exporter.runtime.settings import Settings
from exporter.runtime.settings_text import change, show

MANY = st.builds(
    Settings,
    threshold=st.floats(0.01, 1),
    temperature=st.floats(0, 9),
    steps=st.sampled_from([None, 4, 8]),
    seed=st.integers(0, 1 << 40),
    top_p=st.none() | st.floats(0.1, 1),
    early_stop=st.booleans(),
    eos_inf=st.booleans(),
)


@given(MANY, MANY)
def test_what_is_shown_can_be_read(one: Settings, other: Settings) -> None:
    assert change(other, show(one)) == one
    assert len(show(one).splitlines()) == len(vars(one))


def test_only_what_is_named_changes() -> None:
    want = replace(Settings(), threshold=0.5, gen_length=64, block_length=64, early_stop=False)
    text = "threshold=0.5 --gen-length=64 block-length=64 early_stop=off"
    assert change(Settings(), text) == want


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("", "nothing to set", "NAME=VALUE"),
        ("colour=1", "no setting 'colour=1'", "threshold"),
        ("threshold", "no setting 'threshold'", "NAME=VALUE"),
        ("threshold=high", "threshold is of type float, not 'high'", ""),
        ("gen_length=1.5", "gen_length is of type int, not '1.5'", ""),
        ("gen_length=none", "gen_length is of type int", ""),
        ("early_stop=maybe", "early_stop is on or off, not 'maybe'", ""),
        ("threshold=2", "out of range", ""),
        ("sampler=best", "unknown sampler 'best'", "low-confidence"),
    ],
)
def test_nonsense_is_refused(text: str, says: str, hint: str) -> None:
    with pytest.raises(UserError) as error:
        change(Settings(), text)
    assert says in str(error.value) and hint in error.value.hint
