"""A twin computes what its checkpoint computes, with channels that are as much larger as asked."""

from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.errors import UserError
from exporter.float_session import FloatModel
from exporter.tasks import reference_folder
from exporter.tensor_files import sha256
from tools.outlier_twin import READERS, main, twin_scales, write_twin
from tools.random_checkpoint import Preset, write_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = {"reference": reference_folder(), "llada": GOLDEN / "llada", "dream": GOLDEN / "dream"}


def make_twin(
    source: Path,
    out: Path,
    seed: int = 0,
    channels: int = 4,
    factor: float = 32.0,
    massive: float = 1.0,
) -> Checkpoint:
    write_twin(source, out, seed, channels, factor, massive)
    return open_checkpoint(out)


def logits(checkpoint: Checkpoint) -> torch.Tensor:
    """Raw logits (2, 19, V) of ids that touch the whole vocabulary's start."""
    ids = torch.arange(2 * 19).reshape(2, 19) % checkpoint.spec.vocab_size
    with torch.no_grad():
        return FloatModel(checkpoint).logits(ids, torch.ones_like(ids, dtype=torch.bool))


@pytest.mark.parametrize("source", FOLDERS.values(), ids=list(FOLDERS))
@pytest.mark.parametrize("factor", [32.0, 2.0**-3])
def test_a_power_of_two_changes_no_bit_of_the_logits(
    source: Path, factor: float, tmp_path: Path
) -> None:
    twin = make_twin(source, tmp_path / "twin", factor=factor)
    assert torch.equal(logits(twin), logits(open_checkpoint(source)))


@pytest.mark.parametrize("source", FOLDERS.values(), ids=list(FOLDERS))
def test_massive_channels_change_no_bit_either(source: Path, tmp_path: Path) -> None:
    twin = make_twin(source, tmp_path / "twin", massive=256.0)
    plain = open_checkpoint(source)
    assert torch.equal(logits(twin), logits(plain))
    for block in range(plain.spec.layers):
        grown = twin.tensor("up", block).norm(dim=1) / plain.tensor("up", block).norm(dim=1)
        assert int((grown > 100).sum()) == 4  # the columns behind the norm shrink, by at most 32


def test_another_factor_rounds_each_weight_once(tmp_path: Path) -> None:
    """Products of gain and column are equal but for one rounding of each of the two."""
    source = open_checkpoint(reference_folder())
    twin = make_twin(reference_folder(), tmp_path / "twin", factor=30.0)
    unit = 2.0**-8  # largest relative error of rounding to bf16
    for block in range(source.spec.layers):
        for norm, readers in READERS.items():
            for reader in readers:
                old, new = (
                    c.tensor(norm, block).double() * c.tensor(reader, block).double()
                    for c in (source, twin)
                )
                # (1 + unit)² - 1; fp64 adds 2^-52 and what 1/30 was rounded by, far below unit².
                assert ((new - old).abs() <= old.abs() * (2 * unit + 2 * unit**2)).all()
    assert not torch.equal(logits(twin), logits(source))


@pytest.mark.parametrize("channels", [1, 4, 192])
def test_as_many_channels_of_both_norms_grow(channels: int, tmp_path: Path) -> None:
    source = open_checkpoint(reference_folder())
    twin = make_twin(reference_folder(), tmp_path / "twin", channels=channels)
    for block in range(source.spec.layers):
        for norm in READERS:
            ratio = twin.tensor(norm, block) / source.tensor(norm, block)
            assert (ratio == 32).sum() == channels
            assert (ratio == 1).sum() == source.spec.width - channels
    rest = ["embed", "final_norm", "head", *(f"{i}.{n}" for i in range(4) for n in ("o", "down"))]
    for key in rest:
        assert torch.equal(twin.entries[key].read(), source.entries[key].read())


def test_seed_decides_the_channels() -> None:
    source = open_checkpoint(reference_folder())
    first, again, other = (twin_scales(source, seed, 4, 32.0) for seed in (0, 0, 1))
    assert first == again != other
    by_block = {scale.channels for name, (scale,) in first.items() if "norm" in name}
    assert len(by_block) == 8  # drawn anew for each: equal ones are one in 192 over 4


def test_other_files_come_along_and_shards_stay(tmp_path: Path) -> None:
    source = tmp_path / "many"
    write_checkpoint(source, Preset.TINY.shape, shards=3)
    (source / "tasks").mkdir()
    (source / "tasks" / "sorting.jsonl").write_text("{}\n")
    (source / ".training").mkdir()
    (source / "pytorch_model.bin").write_bytes(b"never copied")
    twin = make_twin(source, tmp_path / "twin")
    assert [f.name for f in twin.files] == [f.name for f in open_checkpoint(source).files]
    assert torch.equal(logits(twin), logits(open_checkpoint(source)))
    names = {path.name for path in source.iterdir()} - {".training", "pytorch_model.bin"}
    assert {path.name for path in twin.folder.iterdir()} == names
    assert (twin.folder / "tasks" / "sorting.jsonl").read_text() == "{}\n"


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Preset.TINY.shape)
    before = sha256(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="there already"):
        write_twin(tmp_path, tmp_path, 0, 4, 32.0)
    assert sha256(tmp_path / "model.safetensors") == before


@pytest.mark.parametrize(
    ("option", "value", "seen"),
    [
        ("--channels", "0", "0 channels of 192"),
        ("--channels", "193", "193 channels of 192"),
        ("--factor", "0", "a factor of 0"),
        ("--massive", "inf", "a factor of 32.0, massive inf"),
        ("--factor", "nan", "a factor of nan"),
    ],
)
def test_command_refuses_what_it_cannot_do(
    option: str, value: str, seen: str, tmp_path: Path
) -> None:
    app = typer.Typer()
    app.command()(main)
    out = tmp_path / "twin"
    done = CliRunner().invoke(app, [str(reference_folder()), str(out), option, value])
    assert done.exit_code == 1
    assert f"error: {seen}" in done.stderr
    assert not out.exists()


def test_command_says_where_the_twin_is(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, [str(reference_folder()), str(tmp_path / "twin")])
    assert done.exit_code == 0, done.output
    assert open_checkpoint(Path(done.stdout.strip())).spec.width == 192
