"""Self-checking tasks: problems made on demand, examples read from files, answers judged."""

from exporter.tasks.examples import Example, is_correct, read_examples
from exporter.tasks.problems import TASKS, Task, task
from exporter.tasks.reference import (
    Reference,
    calibration_examples,
    held_out_examples,
    held_out_tasks,
    reference_folder,
)

__all__ = [
    "TASKS",
    "Example",
    "Reference",
    "Task",
    "calibration_examples",
    "held_out_examples",
    "held_out_tasks",
    "is_correct",
    "read_examples",
    "reference_folder",
    "task",
]
