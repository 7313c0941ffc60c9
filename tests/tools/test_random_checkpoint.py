"""A random checkpoint is one that the project opens, whatever the number of its files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from exporter.checkpoint import open_checkpoint
from exporter.float_session import FloatModel
from tools.random_checkpoint import Preset, main, write_checkpoint

TINY = Preset.TINY.shape


def test_command_writes_what_the_project_opens(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, [str(tmp_path), "--preset", "tiny", "--layers", "3"])
    assert done.exit_code == 0, done.output
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.spec.layers == 3
    assert checkpoint.parameters == int(done.stdout)


@pytest.mark.parametrize("shards", [2, 5])
def test_shards_change_files_and_no_weight(tmp_path: Path, shards: int) -> None:
    write_checkpoint(tmp_path / "one", TINY)
    write_checkpoint(tmp_path / "many", TINY, shards)
    one, many = open_checkpoint(tmp_path / "one"), open_checkpoint(tmp_path / "many")
    assert len(many.files) == shards
    for key in one.entries:
        assert torch.equal(one.entries[key].read(), many.entries[key].read()), key


def test_seed_decides_the_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_checkpoint(tmp_path / name, TINY, seed=seed)
    first, again, other = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b", "c")
    )
    assert first == again
    assert first != other


def test_activations_stay_of_one_size_however_deep(tmp_path: Path) -> None:
    """Each of the 2 L writers adds a share 1 / (2 L), so depth does not show in the size."""
    sizes = []
    for layers in (2, 32):
        folder = tmp_path / str(layers)
        write_checkpoint(folder, replace(TINY, layers=layers))
        model = FloatModel(open_checkpoint(folder), "cpu")
        ids = torch.arange(32)[None]
        with torch.no_grad():
            hidden = model.hidden(ids, torch.ones_like(ids, dtype=torch.bool))
        sizes.append(float(hidden.square().mean().sqrt()))
    # One sum of as many variances each: they differ by chance, far less than by the 16 of a sum
    # that grew with depth, or the 4 of its root.
    assert 0.5 < sizes[1] / sizes[0] < 2
