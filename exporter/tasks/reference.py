"""The trained models and their prompts that ship with this package.

`one-step`: every answer is determined by its prompt. `steps`: tasks of many right answers, which
need several unmasking steps. `blocks`: some of these with block-causal attention, in SDAR's layout.
"""

from importlib import resources
from pathlib import Path
from typing import Literal, get_args

from exporter.tasks.examples import Example, read_examples

Reference = Literal["one-step", "steps", "blocks"]
FOLDERS: dict[Reference, str] = {
    "one-step": "reference",
    "steps": "reference_steps",
    "blocks": "reference_blocks",
}


def reference_folder(name: Reference = "one-step") -> Path:
    """The checkpoint folder of a model, in its upstream layout; ValueError if unknown."""
    if name not in get_args(Reference):
        known = ", ".join(get_args(Reference))
        raise ValueError(f"unknown reference model {name!r}: known are {known}")
    return Path(str(resources.files("exporter").joinpath(FOLDERS[name])))


def calibration_examples(name: Reference = "one-step") -> list[Example]:
    """1,024 training prompts with their answers, of all tasks in turn."""
    return read_examples(reference_folder(name) / "calibration.jsonl")


def held_out_tasks(name: Reference = "one-step") -> list[str]:
    """Names of the tasks that have held-out prompts, sorted."""
    return sorted(path.stem for path in (reference_folder(name) / "tasks").glob("*.jsonl"))


def held_out_examples(task: str | None = None, name: Reference = "one-step") -> list[Example]:
    """Prompts of `task` that training never saw, or those of every task, task by task.

    1,000 a task; `split` has only as many as there are.
    """
    known = held_out_tasks(name)
    if task is not None and task not in known:
        raise ValueError(f"no held-out prompts of {task!r}: known are {', '.join(known)}")
    wanted = known if task is None else [task]
    files = [reference_folder(name) / "tasks" / f"{one}.jsonl" for one in wanted]
    return [example for file in files for example in read_examples(file)]
