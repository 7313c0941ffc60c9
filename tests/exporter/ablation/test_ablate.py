"""Trials are runs of `dqexport eval`: the same answers, done once."""

import fcntl
import json
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from exporter.ablation.ablate import FLOAT, AblationOptions, Trial, ablate
from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.errors import UserError
from exporter.evaluation.generation import Outcome
from exporter.float_session import FloatSession
from exporter.planner import bits_a_weight
from exporter.progress import Progress
from exporter.quant_options import QuantOptions
from exporter.recipes import make_recipe
from exporter.tasks import Example, held_out_examples, reference_folder
from tests.commands import content, dqexport

RECIPES = ("w4a16-rtn", "w4a4-rtn+token")  # one that is not calibrated and one that is
OPTIONS = AblationOptions(RECIPES, (3, 4), QuantOptions(samples=6), calib_prompts=4, trajectory=2)


@pytest.fixture(scope="module")
def reference() -> tuple[Checkpoint, str]:
    checkpoint = open_checkpoint(reference_folder())
    return checkpoint, checkpoint.digest()


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [e for task in ("brackets", "sorting") for e in held_out_examples(task)[:2]]


@pytest.fixture(scope="module")
def finished(
    reference: tuple[Checkpoint, str],
    examples: list[Example],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[Trial]]:
    """A folder of an ablation, and its trials."""
    out = tmp_path_factory.mktemp("ablation")
    return out, ablate(*reference, examples, OPTIONS, out, Progress())


def test_float_comes_first_and_seeds_are_tried_where_they_matter(
    finished: tuple[Path, list[Trial]], reference: tuple[Checkpoint, str]
) -> None:
    out, trials = finished
    assert [(one.recipe, one.seed) for one in trials] == [
        (FLOAT, 0), ("w4a16-rtn", 3), ("w4a4-rtn+token", 3), ("w4a4-rtn+token", 4),
    ]  # fmt: skip
    assert {file.name for file in (out / "runs").iterdir() if file.is_dir()} == {
        FLOAT, "w4a16-rtn-seed3", "w4a4-rtn+token-seed3", "w4a4-rtn+token-seed4",
    }  # fmt: skip
    spec = reference[0].spec
    for one in trials[1:]:
        recipe = make_recipe(one.recipe, spec, OPTIONS.quant, "fp32")
        assert one.bits == bits_a_weight(spec, recipe) < 5
    assert trials[0].bits == 32


def test_every_trial_has_all_examples_and_trajectories(
    finished: tuple[Path, list[Trial]], examples: list[Example]
) -> None:
    _, (reference, *trials) = finished
    for one in (reference, *trials):
        assert [outcome.index for outcome in one.outcomes] == list(range(len(examples)))
        assert [outcome.task for outcome in one.outcomes] == [e.task for e in examples]
        (total,) = [row for row in one.figures.generation if row.task == "all"]
        assert total.right == sum(bool(outcome.correct) for outcome in one.outcomes)
    assert all(outcome.correct for outcome in reference.outcomes)
    assert reference.figures.trajectory is None
    assert all(one.figures.trajectory and one.figures.trajectory.prompts == 2 for one in trials)
    kinds = [one.figures.trajectory.forced.kl for one in trials if one.figures.trajectory]
    assert len(set(kinds)) == len(kinds)  # other prompts to calibrate on, another model


def test_a_trial_is_what_eval_gives(finished: tuple[Path, list[Trial]], tmp_path: Path) -> None:
    trial = finished[1][3]
    tasks = [reference_folder() / "tasks" / f"{name}.jsonl" for name in ("brackets", "sorting")]
    outcome = dqexport(
        "eval", "reference", *tasks, "--limit", "2", "--recipe", trial.recipe, "--samples", "6",
        "--calib-prompts", "4", "--seed", str(trial.seed), "--trajectory", "2", "--json",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    lines = (tmp_path / "run" / "results.jsonl").read_text().splitlines()
    assert sorted((Outcome(**json.loads(line)) for line in lines), key=lambda o: o.index) == list(
        trial.outcomes
    )
    assert trial.figures.trajectory is not None
    found = json.loads(outcome.out)["trajectory"]["forced"]
    assert found["kl"] == trial.figures.trajectory.forced.kl


def test_what_is_finished_is_not_done_again(
    finished: tuple[Path, list[Trial]],
    reference: tuple[Checkpoint, str],
    examples: list[Example],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not a single model call; more recipes and seeds may be asked for later."""

    def called(*_: object, **__: object) -> None:
        raise AssertionError("the model was asked")

    out, trials = finished
    before = content(out)
    monkeypatch.setattr(FloatSession, "forward", called)
    assert ablate(*reference, examples, OPTIONS, out, Progress()) == trials
    fewer = replace(OPTIONS, recipes=RECIPES[1:], seeds=(4,))
    assert ablate(*reference, examples, fewer, out, Progress()) == [trials[0], trials[3]]
    assert content(out) == before
    more = replace(OPTIONS, seeds=(3, 4, 5))
    with pytest.raises(AssertionError, match="the model was asked"):
        ablate(*reference, examples, more, out, Progress())


def test_a_run_that_another_process_is_at_is_waited_for(
    finished: tuple[Path, list[Trial]], reference: tuple[Checkpoint, str], examples: list[Example]
) -> None:
    out, trials = finished
    got: list[list[Trial]] = []

    def again() -> None:
        got.append(ablate(*reference, examples, OPTIONS, out, Progress()))

    start = time.perf_counter()
    again()
    takes = time.perf_counter() - start
    with (out / "runs" / "w4a16-rtn-seed3.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = Thread(target=again)
        thread.start()
        thread.join(3 * takes)
        assert thread.is_alive() and len(got) == 1
    thread.join(60)
    assert got == [trials, trials]


def test_other_settings_in_the_same_folder_are_refused(
    finished: tuple[Path, list[Trial]], reference: tuple[Checkpoint, str], examples: list[Example]
) -> None:
    other = replace(OPTIONS, quant=replace(OPTIONS.quant, samples=5))
    before = content(finished[0])
    with pytest.raises(UserError, match=r"w4a4-rtn\+token-seed3` has subject.digest"):
        ablate(*reference, examples, other, finished[0], Progress())
    with pytest.raises(UserError, match=r"float` has generation.examples"):
        ablate(*reference, examples[1:], OPTIONS, finished[0], Progress())
    assert content(finished[0]) == before


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"recipes": ("w4a16-rtn", "w4a5")}, "Unknown recipe `w4a5`"),
        ({"recipes": ("w4a16-rtn", "w4a4-gptq+magic")}, "Unknown component"),
        ({"quant": QuantOptions(v_bits=3)}, "--v-bits 3"),
        ({"calib": Path("nowhere.jsonl")}, "nowhere.jsonl"),
    ],
)
def test_what_cannot_run_is_refused_before_any_work(
    wrong: dict[str, object],
    says: str,
    reference: tuple[Checkpoint, str],
    examples: list[Example],
    tmp_path: Path,
) -> None:
    options = replace(OPTIONS, **wrong)  # type: ignore[arg-type]  # by name
    with pytest.raises(UserError, match=says) as refused:
        ablate(*reference, examples, options, tmp_path / "out", Progress())
    assert refused.value.hint
    assert not list(tmp_path.iterdir())
