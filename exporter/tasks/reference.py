"""The trained model and its prompts that ship with this package."""

from importlib import resources
from pathlib import Path

from exporter.tasks.examples import Example, read_examples


def reference_folder() -> Path:
    """The checkpoint folder, in the upstream LLaDA layout."""
    return Path(str(resources.files("exporter").joinpath("reference")))


def calibration_examples() -> list[Example]:
    """1,024 training prompts with their answers, of all tasks in turn."""
    return read_examples(reference_folder() / "calibration.jsonl")


def held_out_tasks() -> list[str]:
    """Names of the tasks that have held-out prompts, sorted."""
    return sorted(path.stem for path in (reference_folder() / "tasks").glob("*.jsonl"))


def held_out_examples(task: str | None = None) -> list[Example]:
    """1,000 prompts of `task` that training never saw, or those of every task, task by task."""
    known = held_out_tasks()
    if task is not None and task not in known:
        raise ValueError(f"no held-out prompts of {task!r}: known are {', '.join(known)}")
    wanted = known if task is None else [task]
    files = [reference_folder() / "tasks" / f"{name}.jsonl" for name in wanted]
    return [example for file in files for example in read_examples(file)]
