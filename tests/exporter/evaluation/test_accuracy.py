"""Counts by task add up, and a run differs from itself by nothing."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.agreement import wilson
from exporter.evaluation.accuracy import ALL, accuracies
from exporter.evaluation.generation import Outcome

OUTCOMES = st.lists(
    st.tuples(st.sampled_from("abc"), st.none() | st.booleans(), st.integers(0, 9)), min_size=1
).map(
    lambda rows: [
        Outcome(index, task, "", correct, number, number + 1)
        for index, (task, correct, number) in enumerate(rows)
    ]
)


@given(OUTCOMES)
def test_tasks_add_up_to_all(outcomes: list[Outcome]) -> None:
    found = accuracies(outcomes, None)
    tasks = [row for row in found if row.task != ALL]
    assert [row.task for row in tasks] == list(dict.fromkeys(o.task for o in outcomes))
    assert (found[-1].task == ALL) == (len(tasks) > 1)
    for name in ("prompts", "checked", "right", "tokens", "forwards"):
        total = sum(getattr(row, name) for row in tasks)
        assert getattr(found[-1], name) == total
    assert found[-1].prompts == len(outcomes)


@given(OUTCOMES)
def test_only_what_has_an_answer_counts(outcomes: list[Outcome]) -> None:
    for row in accuracies(outcomes, None):
        assert row.versus is None
        if row.checked:
            assert row.accuracy == row.right / row.checked
            assert row.interval == wilson(row.right, row.checked)
        else:
            assert row.accuracy is None and row.interval is None


@given(OUTCOMES)
def test_a_run_equals_itself_and_differs_from_its_opposite(outcomes: list[Outcome]) -> None:
    flipped = [replace(o, correct=None if o.correct is None else not o.correct) for o in outcomes]
    same, other = accuracies(outcomes, outcomes), accuracies(outcomes, flipped)
    for row, opposite in zip(same, other, strict=True):
        if not row.checked:
            assert row.versus is opposite.versus is None
            continue
        assert row.versus is not None and opposite.versus is not None
        assert (row.versus.difference, row.versus.gained, row.versus.lost) == (0, 0, 0)
        assert row.versus.p == 1 and row.versus.interval[0] <= 0 <= row.versus.interval[1]
        assert opposite.versus.gained == row.right
        assert opposite.versus.lost == row.checked - row.right
        assert row.accuracy is not None
        assert opposite.versus.difference == pytest.approx(2 * row.accuracy - 1)


def test_no_outcomes_have_no_rows() -> None:
    assert accuracies([], None) == []
