"""What an ablation's command line names, and what is refused."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.ablation.inputs import bases_of, open_tasks, recipes_of
from exporter.ablation.presets import PRESETS, QUESTIONS
from exporter.errors import UserError
from exporter.evaluation.subject import UNTOLD
from exporter.progress import Progress
from exporter.recipe_names import SCALES, names, parse
from exporter.tasks import held_out_examples, held_out_tasks, reference_folder

NAMES = st.sampled_from([name for name in names() if name.startswith("w4a4-")])


@given(st.lists(NAMES), st.lists(st.sampled_from(list(PRESETS))), st.none() | NAMES)
def test_every_recipe_once_in_the_order_of_the_command_line(
    named: list[str], presets: list[str], base: str | None
) -> None:
    found = recipes_of(named, presets, base)
    asked = [*named, *(name for preset in presets for name in PRESETS[preset])]
    asked = asked or list(PRESETS["components"])
    assert len(set(found)) == len(found)
    assert set(found) == {*asked, *([base] if base else [])}
    firsts = [asked.index(name) for name in found if name in asked]
    assert firsts == sorted(firsts)
    if base is not None and base not in asked:
        assert found[0] == base


def test_an_unknown_preset_gets_the_known_ones_with_their_questions() -> None:
    with pytest.raises(UserError, match="Unknown preset `all`") as refused:
        recipes_of([], ["bits", "all"])
    for name, question in QUESTIONS.items():
        assert f"{name}: {question}" in refused.value.hint


@pytest.mark.parametrize(
    ("recipe", "base"),
    [
        ("w4a4-gptq+tmas+cgq", "w4a4-gptq"),
        ("w4a4-gptq+token+cgq", "w4a4-gptq+token"),
        ("w4a4-gptq", "w4a4-gptq"),
        ("w4a4", "w4a4-quarot"),
        ("w4a4-dllmquant+token", "w4a4-quarot+token"),
        ("w4a16", "w4a16-gptq"),
    ],
)
def test_the_base_is_the_method_alone_on_the_same_scales(recipe: str, base: str) -> None:
    assert bases_of([recipe], None) == {recipe: base}
    bits, method, parts = parse(base)
    assert (bits, method) == parse(recipe)[:2]
    assert set(parts) <= set(SCALES)
    assert bases_of([base], None) == {base: base}


def test_a_base_that_is_named_is_that_of_all() -> None:
    assert bases_of(["w4a4", "w4a16-rtn"], "w4a4-rtn") == {
        "w4a4": "w4a4-rtn", "w4a16-rtn": "w4a4-rtn",
    }  # fmt: skip


def test_without_arguments_it_is_the_second_reference_model_and_its_tasks() -> None:
    checkpoint, digest, examples = open_tasks([], 2, UNTOLD, Progress())
    assert checkpoint.folder == reference_folder("steps")
    assert digest == checkpoint.digest()
    tasks = held_out_tasks("steps")
    assert examples == [e for task in tasks for e in held_out_examples(task, "steps")[:2]]


@pytest.mark.parametrize(
    ("line", "says", "hint"),
    [
        ({"prompt": "S1="}, "of `open` has no answer", '"answer"'),
        ({"prompt": "1", "answer": "x = 1", "match": "code"}, "`open` are programs", "eval"),
    ],
)
def test_answers_that_cannot_be_judged_are_refused(
    line: dict[str, str], says: str, hint: str, tmp_path: Path
) -> None:
    file = tmp_path / "open.jsonl"
    good = {"prompt": "_S58982066=", "answer": "02566889"}
    file.write_text("".join(json.dumps(one) + "\n" for one in (good, line)))
    with pytest.raises(UserError, match=says) as refused:
        open_tasks(["reference", str(file)], None, UNTOLD, Progress())
    assert hint in refused.value.hint
    assert len(open_tasks(["reference", str(file)], 1, UNTOLD, Progress())[2]) == 1


def test_a_bundle_is_no_checkpoint(tmp_path: Path) -> None:
    tasks = reference_folder() / "tasks" / "sorting.jsonl"
    with pytest.raises(UserError, match="no checkpoint"):
        open_tasks([str(tmp_path), str(tasks)], 1, UNTOLD, Progress())
