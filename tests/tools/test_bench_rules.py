"""Which settings the table of rules and caches covers, and that it prints one."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from exporter.build import BuildOptions, build
from exporter.runtime.bundle import read_bundle
from exporter.runtime.samplers import SAMPLERS
from exporter.tasks import reference_folder
from tools.bench_rules import every_setting, main


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "bundle"
    build(None, "cpu", out, BuildOptions(recipe="fp32", gate_prompts=1))
    return out


def test_every_sampler_meets_every_cache(bundle: Path) -> None:
    found = every_setting(read_bundle(bundle).model, 4)
    assert len(found) == 4 * len(SAMPLERS)
    assert {c.decode["sampler"] for c in found} == set(SAMPLERS)


def test_the_table_has_every_setting_that_the_model_can_be_decoded_with(
    bundle: Path,
) -> None:
    app = typer.Typer()
    app.command()(main)
    tasks = str(reference_folder() / "tasks" / "addition.jsonl")
    options = ["--tasks", tasks, "--limit", "1", "--rounds", "1", "--timed", "1", "--json"]
    done = CliRunner().invoke(app, [str(bundle), *options])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    # no exact cache under full attention, no cache at all for samplers of the whole canvas, for
    # those that look at all tokens and for those that move them
    alone = sum(row.by_canvas or row.shadowed or row.grows for row in SAMPLERS.values())
    assert len(found) == 1 + 3 * (len(SAMPLERS) - alone) + alone
