"""The harness runs its tasks on our subjects; needs lm_eval (`pip install lm_eval`)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from exporter.tasks import reference_folder

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.lm_eval

GENERATION = """
task: own_sorting
dataset_path: json
dataset_kwargs: {data_files: {test: SORTING}}
output_type: generate_until
test_split: test
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOICE = """
task: own_sums
dataset_path: json
dataset_kwargs: {data_files: {test: SUMS}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{q}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ROLLING = """
task: own_texts
dataset_path: json
dataset_kwargs: {data_files: {test: SUMS}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{q}}"
metric_list: [{metric: bits_per_byte}]
"""
SUMS = [
    {"q": "__A123+456=", "choices": ["0580", "0579"], "label": 1},
    {"q": "__A331+735=", "choices": ["1066", "1166"], "label": 0},
]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of task files that read local data."""
    sums = tmp_path / "sums.jsonl"
    sums.write_text("\n".join(map(json.dumps, SUMS)))
    for name, text in (("sorting", GENERATION), ("sums", CHOICE), ("texts", ROLLING)):
        sorting = reference_folder() / "tasks" / "sorting.jsonl"
        text = text.replace("SORTING", str(sorting)).replace("SUMS", str(sums))
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def harness(tasks: Path, *names: str, arguments: str) -> dict[str, Any]:
    """Results by task of the harness in a process of its own, without a network."""
    out = tasks / "out.json"
    subprocess.run(
        [sys.executable, "-m", "exporter.lm_eval_model", "run", "--model", "dqexport",
         "--model_args", arguments, "--tasks", *names, "--include_path", str(tasks), "--limit",
         "20", "--batch_size", "auto", "--output_path", str(out), "--log_samples"],
        check=True, capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_OFFLINE": "1",
             "HF_HUB_OFFLINE": "1", "HF_HOME": str(tasks / "home")},
    )  # fmt: skip
    (found,) = tasks.rglob("out*.json")
    results: dict[str, Any] = json.loads(found.read_text())["results"]
    return results


def test_tasks_of_all_kinds_run(tasks: Path) -> None:
    names = ("own_sorting", "own_sums", "own_texts")
    arguments = "subject=reference,steps=4,mc_num=8,mc_batch=4"
    found = harness(tasks, *names, arguments=arguments)
    # the model answers 3,999 of the 4,000 shipped prompts right at two steps or more
    assert found["own_sorting"]["exact_match,none"] >= 0.95
    assert found["own_sums"]["acc,none"] == 1
    assert found["own_texts"]["bits_per_byte,none"] > 0


def test_few_shot_counts_of_the_literature() -> None:
    from exporter.lm_eval_model import with_few_shot

    run = ["run", "--tasks"]
    assert with_few_shot([*run, "gsm8k"]) == [*run, "gsm8k", "--num_fewshot", "4"]
    assert with_few_shot([*run, "mmlu", "--limit", "1"])[-2:] == ["--num_fewshot", "5"]
    assert with_few_shot([*run, "piqa,humaneval"])[-2:] == ["--num_fewshot", "0"]
    for argv in (["gsm8k,mbpp"], ["own"], ["gsm8k", "own"], ["gsm8k", "--num_fewshot", "8"]):
        assert with_few_shot([*run, *argv]) == [*run, *argv]
    assert with_few_shot(["ls", "tasks"]) == ["ls", "tasks"]


def test_settings_come_from_the_command_then_from_the_literature() -> None:
    from lm_eval.api.instance import Instance

    from exporter.lm_eval_model import DqExport

    def item(model: DqExport, task: str) -> Any:
        request = Instance("generate_until", {}, ("__A1+2=", {}), 0, metadata=(task, 0, 1))
        return model._item(0, request).settings

    model = DqExport("reference")
    assert item(model, "own").gen_length == 8
    settings = item(model, "gsm8k_cot")
    assert (settings.gen_length, settings.steps, settings.block_length) == (256, 256, 32)
    shorter = DqExport("reference", gen_length=64, steps=32)
    settings = item(shorter, "gsm8k")
    assert (settings.gen_length, settings.steps, settings.block_length) == (64, 32, 32)
    assert model._monte_carlo("mmlu_anatomy").draws == 1
    assert model._monte_carlo("piqa").draws == 128
    assert DqExport("reference", mc_num=32)._monte_carlo("piqa").draws == 32


def test_spaces_go_to_the_answer_as_the_harness_has_it() -> None:
    from exporter.lm_eval_model import DqExport

    model = DqExport("reference")
    prompt, answer = model._pair("2+2= ", "4")
    assert len(prompt) == 4 and len(answer) == 2
    assert model._pair("", "0579")[0] == ()


def test_chat_takes_one_message() -> None:
    from exporter.errors import UserError
    from exporter.lm_eval_model import DqExport

    model = DqExport("reference")
    assert model.apply_chat_template([{"role": "user", "content": "hi"}]) == "hi"
    two = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(UserError, match="2 messages") as caught:
        model.apply_chat_template(two)
    assert "--fewshot_as_multiturn" in caught.value.hint
    with pytest.raises(UserError, match="'colour'"):
        DqExport("reference", colour=3)
