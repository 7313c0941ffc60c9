"""Likelihoods of questions: kept, summed up, compared; the shipped model knows what is right."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import UserError
from exporter.evaluation.choices import Question
from exporter.evaluation.likelihood import MonteCarlo
from exporter.evaluation.run_folder import Run
from exporter.evaluation.scoring import (
    PART,
    Scored,
    encode_questions,
    likelihoods,
    mean_of,
    ratio_of,
    score,
)
from exporter.evaluation.subject import Hardware, Subject, bundle_subject, open_subject
from exporter.progress import Progress
from exporter.runtime.bundle import read_bundle

FEW = MonteCarlo(8, 4)
QUESTIONS = [
    Question("sums", "__A123+456=", ("0580", "0579"), 1),
    Question("sums", "__A331+735=", ("1066", "1166", "0066"), 0),
    Question("sorting", "_S58982066=", ("02566889",), 0),
]


@pytest.fixture(scope="module")
def reference() -> Subject:
    return open_subject("reference", Hardware(), Progress())


def test_the_shipped_model_finds_the_right_answers(reference: Subject, tmp_path: Path) -> None:
    encoded = encode_questions(reference, QUESTIONS, chat=True)
    lines = score(reference, encoded, FEW, Run(tmp_path, {}), Progress())
    assert [line.chosen for line in lines] == [question.answer for question in QUESTIONS]
    assert [line.tokens for line in lines] == [[4, 4], [4, 4, 4], [8]]
    for line in lines:
        # the model answers these prompts right in one step: the odds against are below 1 in 2
        assert line.log_likelihood[line.answer] > -line.tokens[line.answer] * math.log(2)
    sums, sorting = likelihoods(lines, None)
    assert (sums.task, sums.questions, sums.tokens, sums.accuracy) == ("sums", 2, 8, 1)
    assert (sorting.accuracy, sorting.interval, sorting.per_answer.interval) == (None, None, None)
    assert sorting.per_token.mean == pytest.approx(sorting.per_answer.mean / 8)


def test_what_is_scored_is_kept(reference: Subject, tmp_path: Path) -> None:
    encoded, run = encode_questions(reference, QUESTIONS, chat=True), Run(tmp_path, {})
    first = score(reference, encoded, FEW, run, Progress())
    file = tmp_path / f"{PART}.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert score(reference, encoded, FEW, run, Progress()) == first
    assert file.read_bytes() == whole

    def closed() -> None:
        raise AssertionError("nothing is left to score")

    assert score(replace(reference, logits=closed), encoded, FEW, run, Progress()) == first  # type: ignore[arg-type]


def test_a_bundle_must_return_logits(
    tiny: Subject, tmp_path: Path, float_bundles: dict[str, Path], llada_subject: Subject
) -> None:
    with pytest.raises(UserError, match="return reductions, no logits") as caught:
        encode_questions(tiny, [Question("t", "sun", ("moon",), 0)], chat=True)
    assert "--outputs logits" in caught.value.hint

    question = Question("t", (5, 6, 7), ((8, 9), (10,)), 0)
    bundle = bundle_subject(read_bundle(float_bundles["llada"]), Hardware(threads=1))
    found = []
    for place, one in ((tmp_path / "a", bundle), (tmp_path / "b", llada_subject)):
        place.mkdir()
        asked = encode_questions(one, [question], chat=True)
        found += score(one, asked, FEW, Run(place, {}), Progress())
    # two evaluations of fp32 logits, see test_likelihood.py, times at most 2 tokens
    for a, b in zip(found[0].log_likelihood, found[1].log_likelihood, strict=True):
        assert a == pytest.approx(b, abs=2 * 2 * (8e-5 + 8e-5))


def test_what_cannot_be_read_is_refused(tiny: Subject, reference: Subject) -> None:
    able = replace(tiny, logits=reference.logits)
    for question, seen in (
        (Question("t", "x" * 40, ("y" * 30,), 0), "40 tokens, its answer 30: more than the 64"),
        (Question("t", (5, 300), ("y",), 0), "`t` has id 300, outside of 0 … 263"),
        (Question("t", "x", ((5, 300),), 0), "`t` has id 300"),
    ):
        with pytest.raises(UserError, match=seen):
            encode_questions(able, [question], chat=True)
    mute = replace(able, text=None, tokenizer=None)
    for question in (Question("t", "x", ((5,),), 0), Question("t", (5,), ("x",), 0)):
        with pytest.raises(UserError, match="has no tokenizer") as caught:
            encode_questions(mute, [question], chat=True)
        assert "token ids" in caught.value.hint


@given(st.lists(st.floats(-100, 0), min_size=2, max_size=20))
def test_means_have_the_interval_of_their_standard_error(values: list[float]) -> None:
    found = mean_of(values)
    assert found.mean == pytest.approx(np.mean(values)) and found.interval is not None
    low, high = found.interval
    assert low <= found.mean <= high
    half = 1.96 * np.std(values, ddof=1) / math.sqrt(len(values))
    assert (high - low) / 2 == pytest.approx(half, abs=1e-9)


@given(st.lists(st.tuples(st.floats(-100, 0), st.integers(1, 30)), min_size=2, max_size=20))
def test_ratios_of_equal_sizes_are_means(rows: list[tuple[float, int]]) -> None:
    values, sizes = [v for v, _ in rows], [s for _, s in rows]
    found = ratio_of(values, sizes)
    assert found.mean == pytest.approx(sum(values) / sum(sizes))
    assert found.interval is not None and found.interval[0] <= found.mean + 1e-9
    equal, plain = ratio_of(values, [5] * len(values)), mean_of([v / 5 for v in values])
    assert equal.mean == pytest.approx(plain.mean)
    assert equal.interval == pytest.approx(plain.interval, abs=1e-9)


def test_two_models_are_compared_answer_by_answer() -> None:
    ours = [Scored(i, "t", [2, 2], [-3.0 - i, -9.0], [0.1, 0.1], 0, 0) for i in range(3)]
    theirs = [replace(line, log_likelihood=[line.log_likelihood[0] - 1, -1.0], chosen=1)
              for line in ours]  # fmt: skip
    (row,) = likelihoods(ours, theirs)
    assert row.per_answer_versus is not None and row.accuracy_versus is not None
    assert row.per_answer_versus.mean == 1 and row.per_answer_versus.interval == (1, 1)
    assert (row.accuracy_versus.difference, row.accuracy_versus.gained) == (1, 3)
    (same,) = likelihoods(ours, ours)
    assert same.per_answer_versus is not None and same.per_answer_versus.interval == (0, 0)
