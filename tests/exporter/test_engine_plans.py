"""For which shapes engines are built: all that a canvas can have, once each."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.engine_plans import default_kinds, plan_engines, profiles
from exporter.graph_kind import GraphKind, graph_kinds
from exporter.runtime.candidates import wanted
from exporter.runtime.settings import Settings

KINDS = graph_kinds(logits=False, shadow=True)
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
LENGTHS = st.integers(1, 4096)


@each_kind
@given(canvas=st.integers(2, 32768), block=LENGTHS, answer=LENGTHS, batch=st.integers(1, 8))
def test_every_length_has_one_profile(
    kind: GraphKind, canvas: int, block: int, answer: int, batch: int
) -> None:
    settings = Settings(gen_length=answer, block_length=block)
    tables = profiles(kind, settings, canvas, batch)
    lengths = [table["Q" if kind.cached else "S"] for table in tables]
    assert (lengths[0][0], lengths[-1][2]) == (1, canvas)
    for (_, _, before), (least, _, _) in pairwise(lengths):
        assert least == before + 1
    for table in tables:
        for least, best, most in table.values():
            assert 1 <= least <= best <= most


@each_kind
@given(canvas=st.integers(2, 4096), block=LENGTHS, answer=LENGTHS, batch=st.integers(1, 8))
def test_rows_and_predictions_of_an_answer_fit(
    kind: GraphKind, canvas: int, block: int, answer: int, batch: int
) -> None:
    rows = 2 if kind.guided else 1
    settings = Settings(gen_length=answer, block_length=block)
    for table in profiles(kind, settings, canvas, batch):
        assert table["rows"] == (rows, rows, rows * batch)
        longest = table["Q" if kind.cached else "S"][2]
        assert table["W"][2] == min(longest, max(answer, min(block, canvas)))
        assert ("R" in table) == kind.shadow


def test_a_stored_block_and_the_next_share_the_first_profile_of_a_cache() -> None:
    first, *_ = profiles(GraphKind(cached=True), Settings(gen_length=64, block_length=32), 4096, 1)
    assert first["Q"] == (1, 32, 65)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (Settings(), ["full", "cached"]),
        (Settings(cfg_scale=1.5), ["full-guided", "cached-guided"]),
        (Settings(temperature=0.5), ["full-sample", "cached-sample"]),
        (Settings(sampler="entropy"), ["full-sample", "cached-sample"]),
    ],
)
def test_engines_of_the_defaults_answer_to_them(settings: Settings, names: list[str]) -> None:
    found = default_kinds(KINDS, settings)
    assert [kind.name for kind in found] == names
    assert all(wanted(settings) <= set(kind.outputs) for kind in found)
    plans = plan_engines(KINDS, settings, 256, 1)
    assert [plan.graph for plan in plans] == [kind.name for kind in KINDS]
    assert [plan.graph for plan in plans if plan.default] == names
    assert len({plan.path for plan in plans}) == len(plans)
