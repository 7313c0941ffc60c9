"""What a command line names is found, limited and refused as it says."""

from pathlib import Path

import pytest

from exporter.errors import UserError
from exporter.evaluation.inputs import (
    Names,
    monte_carlo,
    one_kind_of_error,
    open_inputs,
    split_arguments,
)
from exporter.evaluation.likelihood import MonteCarlo
from exporter.evaluation.simulated_subject import Quantization
from exporter.evaluation.subject import Hardware
from exporter.progress import Progress
from exporter.quant_options import QuantOptions
from exporter.runtime.errors import UserError as RuntimeUserError
from exporter.tasks import reference_folder
from tests.commands import GOLDEN


def test_the_first_argument_is_the_subject_unless_it_is_a_file_of_examples() -> None:
    files = (Path("a.jsonl"), Path("b.txt"))
    assert split_arguments([]) == ("reference", ())
    assert split_arguments(["model"]) == ("model", ())
    assert split_arguments(["model", "a.jsonl", "b.txt"]) == ("model", files)
    assert split_arguments(["a.jsonl", "b.txt"]) == ("reference", files)


def test_a_checkpoint_brings_its_tasks() -> None:
    with open_inputs(Names("reference", (), limit=3), Hardware(), Progress()) as found:
        counts = [example.task for example in found.examples]
    assert counts == [t for t in ("addition", "brackets", "reversing", "sorting") for _ in range(3)]
    assert found.twin is found.subject and found.subject.is_float
    assert found.subject.recipe is None and found.subject.name == "reference"
    same = Names(str(reference_folder()), (reference_folder() / "tasks" / "sorting.jsonl",))
    with open_inputs(same, Hardware(), Progress()) as again:
        assert len(again.examples) == 1000
    assert again.subject.digest == found.subject.digest


def test_a_simulated_subject_is_not_the_float_model() -> None:
    how = Quantization("w4a16-rtn", QuantOptions())
    names = Names("reference", (), limit=1, quantization=how)
    with open_inputs(names, Hardware(), Progress()) as found:
        assert found.twin is not None and found.twin.is_float and not found.subject.is_float
        assert found.subject.recipe == "w4a16-rtn"
        assert found.subject.digest != found.twin.digest


def test_questions_are_limited_too(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"prompt": "S1=", "answer": "1"}\n' * 5)
    names = Names("reference", (), likelihood=file, limit=2)
    with open_inputs(names, Hardware(), Progress()) as found:
        assert (len(found.questions), found.examples) == (2, [])


@pytest.mark.parametrize(
    ("names", "seen", "hint"),
    [
        (Names("absent", (GOLDEN / "x.jsonl",)), "cannot read", "path"),
        (Names(str(GOLDEN / "llada"), ()), "No task files for", ".jsonl"),
        (Names(str(GOLDEN), (reference_folder() / "tasks" / "sorting.jsonl",)), "no config", "bun"),
    ],
)
def test_what_is_not_there_is_named(names: Names, seen: str, hint: str) -> None:
    with (
        pytest.raises(UserError, match=seen) as caught,
        open_inputs(names, Hardware(), Progress()),
    ):
        pass
    assert hint in caught.value.hint


def test_draws_divide_or_are_refused() -> None:
    assert monte_carlo(128, 16, 3, 0.5) == MonteCarlo(128, 16, 3, 0.5)
    assert monte_carlo(1, 16, 0, 0.0) == MonteCarlo(1, 1)
    with pytest.raises(UserError, match="20 draws") as caught:
        monte_carlo(20, 16, 0, 0.0)
    assert "--mc-num 16" in caught.value.hint


def test_errors_of_the_loop_keep_their_hint() -> None:
    with pytest.raises(UserError, match="seen") as caught, one_kind_of_error():
        raise RuntimeUserError("seen", "do")
    assert caught.value.hint == "do"
