"""The table of the literature, and who it is for."""

from dataclasses import asdict

import pytest

from exporter.evaluation.presets import PRESETS, preset
from exporter.runtime.settings import Settings


def test_parts_of_a_task_are_run_like_the_task() -> None:
    assert preset("mmlu_anatomy") is preset("mmlu") is PRESETS["mmlu"]
    assert preset("minerva_math_algebra") is PRESETS["minerva_math"]
    assert preset("mmlupro") is None and preset("") is None


@pytest.mark.parametrize("name", PRESETS)
def test_every_row_can_be_decoded_or_scored(name: str) -> None:
    row = PRESETS[name]
    assert (row.gen_length is None) == (row.draws is not None)
    named = {k: v for k, v in asdict(row).items() if k in vars(Settings()) and v is not None}
    assert Settings(**named).gen_length == (row.gen_length or Settings.gen_length)
