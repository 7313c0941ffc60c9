"""What an ablation's command line names: the checkpoint, its tasks, the recipes."""

from collections.abc import Sequence

from exporter.ablation.presets import PRESETS, QUESTIONS
from exporter.checkpoint import Checkpoint
from exporter.errors import UserError
from exporter.evaluation.inputs import read_tasks, split_arguments
from exporter.evaluation.subject import Ids, open_float
from exporter.progress import Progress
from exporter.recipe_names import SCALES, parse
from exporter.tasks import Example


def open_tasks(
    arguments: Sequence[str],
    limit: int | None,
    ids: Ids,
    progress: Progress,
) -> tuple[Checkpoint, str, list[Example]]:
    """The checkpoint, its digest and the examples. Raises UserError."""
    subject, files = split_arguments(arguments or ["reference-steps"])
    examples = read_tasks(subject, files, limit)
    unchecked = next((example for example in examples if example.answer is None), None)
    if unchecked is not None:
        raise UserError(
            f"An example of `{unchecked.task}` has no answer: nothing can be right or wrong",
            'Give lines like {"prompt": "2+2=", "answer": "4"}',
        )
    program = next((example for example in examples if example.match == "code"), None)
    if program is not None:
        raise UserError(
            f"Answers of `{program.task}` are programs, which an ablation does not run",
            "Leave them out, or judge one recipe at a time: `dqexport eval --allow-code`",
        )
    checkpoint, digest = open_float(subject, progress, ids)
    return checkpoint, digest, examples


def recipes_of(
    named: Sequence[str], presets: Sequence[str], base: str | None = None
) -> tuple[str, ...]:
    """Every recipe once, in order; those of the preset `components` where nothing is named.

    First of all comes the `base` that all are compared with, where it is not among them.
    """
    for preset in presets:
        if preset not in PRESETS:
            known = "; ".join(f"{name}: {question}" for name, question in QUESTIONS.items())
            raise UserError(f"Unknown preset `{preset}`", f"Known: {known}")
    if not (named or presets):
        presets = ["components"]
    listed = [recipe for preset in presets for recipe in PRESETS[preset]]
    recipes = tuple(dict.fromkeys([*named, *listed]))
    return recipes if base is None or base in recipes else (base, *recipes)


def bases_of(recipes: Sequence[str], base: str | None) -> dict[str, str]:
    """What each recipe is compared with: `base`, else its own bits, method and scales alone."""
    if base is not None:
        return dict.fromkeys(recipes, base)
    return {name: _plain(*parse(name)) for name in recipes}


def _plain(bits: str, method: str, components: Sequence[str]) -> str:
    return "+".join([f"{bits}-{method}", *(c for c in components if c in SCALES)])
