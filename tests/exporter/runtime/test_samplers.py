"""The table of samplers agrees with the settings, the schedules and the command's help."""

from dataclasses import fields

import pytest

from exporter.runtime.options import make_parser
from exporter.runtime.plan import SCHEDULES
from exporter.runtime.samplers import SAMPLERS
from exporter.runtime.settings import Settings

COMMON = {  # what means something to every sampler, or to all that know blocks
    "sampler", "cache", "gen_length", "cfg_scale", "temperature", "top_k", "top_p", "seed",
    "early_stop", "eos_early_stop", "eos_inf", "confidence_eos_inf", "max_forwards",
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_row_reads_settings_that_there_are(name: str) -> None:
    row = SAMPLERS[name]
    assert set(row.reads) <= {field.name for field in fields(Settings)} - COMMON
    assert set(row.limits) <= set(row.reads)
    assert row.schedule in SCHEDULES
    assert ("block_length" in row.reads) != row.by_canvas
    for limit in row.limits:
        assert Settings(sampler=name).limit(limit) == row.limits[limit]


def test_every_setting_and_every_schedule_is_of_use() -> None:
    read = {name for row in SAMPLERS.values() for name in row.reads}
    assert read | COMMON == {field.name for field in fields(Settings)}
    assert {row.schedule for row in SAMPLERS.values()} == set(SCHEDULES)


def test_a_limit_that_is_given_goes_before_the_samplers_own() -> None:
    assert Settings(sampler="llada2-threshold").limit("threshold") == 0.95
    assert Settings(sampler="llada2-threshold", threshold=0.5).limit("threshold") == 0.5


def test_help_lists_the_samplers_that_an_option_is_for() -> None:
    text = " ".join(make_parser(Settings(sampler="sdar-dynamic"), "decode").format_help().split())
    shown = text.replace("- ", "-")  # where a line was broken at a hyphen
    assert "(dinfer-hierarchy 0.4, local-leap 0.75, daedal 0.1)" in shown
    assert "sdar-dynamic 0.85" in shown
    assert "(llada2-edit) (default: 16)" in shown
    for field in fields(Settings):
        assert f"--{field.name.replace('_', '-')}" in text
