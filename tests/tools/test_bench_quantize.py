"""The bench measures what it says: the same problem for all, in processes that report honestly.

`DQEXPORT_PEER=llmcompressor:/path/to/python pytest -m peer` runs it against that package.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from exporter.checkpoint import open_checkpoint
from exporter.families import block_shapes
from exporter.tensor_files import read_header, write_tensors
from passes.numerics import WeightGrid
from passes.weights.rtn import round_to_nearest
from tools.bench_quantize import Linear, error_left, linears, main, race, row, write_problem
from tools.quantize_worker import Reply, Request, started
from tools.random_checkpoint import Preset, write_checkpoint

PEER = os.environ.get("DQEXPORT_PEER", "")
OURS = [sys.executable, "-m", "tools.quantize_ours"]
SMALL = Linear("small", 48, 64)

if not sys.platform.startswith("linux"):
    pytest.skip("reads /proc", allow_module_level=True)


def request(folder: Path, method: str = "gptq") -> Request:
    problem, result = str(folder / "problem.safetensors"), str(folder / "result.safetensors")
    return Request(problem, result, method, bits=4, group=32, damping=0.01)


def test_linears_are_the_shapes_of_a_block(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Preset.TINY.shape)
    shapes = block_shapes(open_checkpoint(tmp_path).spec, 0).values()
    matrices = {tuple(shape) for shape in shapes if len(shape) == 2}
    assert {(one.out, one.width) for one in linears(Preset.TINY)} == matrices


def test_a_problem_has_outlier_channels_and_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_problem(tmp_path / name, Linear("q", 16, 256), tokens=400)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    given = read_header(tmp_path / "a")
    assert given["w"].read().shape == (16, 256)
    size = given["x"].read().square().mean(0).sqrt()
    assert size.shape == (256,)
    largest, rest = size.sort(descending=True).values.split([4, 252])
    assert largest.min() > 5 * rest.median()


def test_the_error_is_that_of_the_outputs(tmp_path: Path) -> None:
    write_problem(tmp_path / "problem", SMALL, tokens=100)
    given = read_header(tmp_path / "problem")
    w, x = given["w"].read(), given["x"].read()
    approximation = round_to_nearest(w, WeightGrid(4, 32)).dequantize()
    write_tensors(tmp_path / "result", {"weight": approximation})
    y, z = x.double() @ w.T.double(), x.double() @ approximation.T.double()
    expected = float((z - y).square().sum() / y.square().sum())
    assert error_left(tmp_path / "problem", tmp_path / "result") == pytest.approx(
        expected, rel=1e-4
    )


def test_our_processes_answer_with_better_weights_than_rounded_ones(tmp_path: Path) -> None:
    problem = request(tmp_path).problem
    write_problem(Path(problem), SMALL, tokens=500)
    given = read_header(Path(problem))
    rounded = round_to_nearest(given["w"].read(), WeightGrid(4, 32)).dequantize()
    write_tensors(tmp_path / "rounded", {"weight": rounded})
    limit = error_left(Path(problem), tmp_path / "rounded")
    with started(OURS, tmp_path / "log") as ours:
        for method in ("gptq", "awq"):
            one = request(tmp_path, method)
            replies = race([ours], [one], rounds=2)[0]
            assert len(replies) == 2
            assert all(r.statistics > 0 and r.solve > 0 and r.peak >= 0 for r in replies)
            assert error_left(Path(problem), Path(one.result)) < limit
        ours(request(tmp_path))  # a failure below is not that of the start
        with pytest.raises(RuntimeError, match="KeyError: 'nonsense'"):
            ours(request(tmp_path, "nonsense"))


def test_a_row_compares_medians(tmp_path: Path) -> None:
    ours = [Reply(0.5, s, peak) for s, peak in ((1.0, 10), (9.0, 30), (2.0, 20))]
    theirs = [Reply(1.0, s, 40) for s in (4.0, 4.0, 4.0)]
    found = row(SMALL, "gptq", [0.1, 0.2], [ours, theirs])
    assert found["error ratio"] == 0.5
    assert found["seconds"] == (2.5, 5.0)
    assert found["seconds ratio"] == 0.5
    assert found["of these solving"] == (2.0, 4.0)
    assert found["peak MB"] == (30e-6, 40e-6)


@pytest.mark.peer
@pytest.mark.skipif(not PEER, reason="needs another interpreter in DQEXPORT_PEER")
def test_the_peer_runs_and_we_are_as_good() -> None:
    peer, python = PEER.split(":")
    options = f"--peer {peer} --python {python} --preset tiny --group 32 --tokens 512 --rounds 1"
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, [*options.split(), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {r["method"] for r in found["rows"]} >= {"gptq"}
    for one in found["rows"]:
        assert all(0 < error < 0.1 for error in one["error"])
    assert found["medians"]["gptq error ratio"] <= 1.02
