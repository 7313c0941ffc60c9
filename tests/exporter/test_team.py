import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from exporter.errors import UserError
from exporter.team import device_of
from passes.base import Alone, share

GOLDEN = Path(__file__).parents[1] / "golden" / "llada"

WORKER = """
import sys
import torch
from exporter.team import open_team
with open_team("cpu") as team:
    total = torch.full((2, 3), float(team.rank + 1))
    team.sum(total)
    joined = team.join(torch.full((team.rank + 1, 2), team.rank, dtype=torch.int8))
    found = team.collect({"rank": team.rank})
    line = f"{team.rank} {total[0, 0].item()} {joined.tolist()} {found}\\n"
    sys.stdout.write(line)  # in one piece: the other process writes too
"""


class _Of:
    """A team's place and size, for `share`."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.sum, self.join, self.collect = Alone().sum, Alone().join, Alone().collect


@pytest.mark.parametrize("count", [0, 1, 5, 64, 127])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_cover_all_rows_once(count: int, size: int) -> None:
    rows = [i for rank in range(size) for i in range(count)[share(count, _Of(rank, size))]]
    assert rows == list(range(count))


def torchrun(*arguments: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *arguments]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_two_processes_sum_join_and_collect(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    lines = sorted(torchrun(str(script)).splitlines())
    expected = "3.0 [[0, 0], [1, 1], [1, 1]] [{'rank': 0}, {'rank': 1}]"
    assert lines == [f"0 {expected}", f"1 {expected}"]


def test_two_processes_build_what_one_builds(tmp_path: Path, golden_w4: Path) -> None:
    """The same states and tokens; a sum in another order may tip the rounding of some codes."""
    command = Path(sys.executable).with_name("dqexport")
    torchrun(str(command), "build", str(GOLDEN), "-o", str(tmp_path / "b"), *W4_OPTIONS)
    one, two = (json.loads((f / "manifest.json").read_text()) for f in (golden_w4, tmp_path / "b"))
    assert one["calibration"] == two["calibration"]
    assert [p["step"] for p in one["passes"]] == [p["step"] for p in two["passes"]]
    ours, theirs = ([p["stats"] for p in m["passes"] if "error" in p["stats"]] for m in (one, two))
    assert [s["tokens"] for s in ours] == [s["tokens"] for s in theirs]
    # tipped codes move the error by far less than what lies between GPTQ and rounding (factors)
    errors = [s["error"] for s in ours]
    assert [s["error"] for s in theirs] == pytest.approx(errors, rel=0.05)


W4_OPTIONS = ("--no-gate", "--gen-length", "16", "--block-length", "16", "--samples", "16",
              "--calib-prompts", "8", "--gate-prompts", "4")  # fmt: skip


@pytest.fixture(scope="module")
def golden_w4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("team") / "b"
    command = Path(sys.executable).with_name("dqexport")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    build = [str(command), "build", str(GOLDEN), "-o", str(out), *W4_OPTIONS]
    subprocess.run(build, check=True, capture_output=True, env=environment)
    return out


def test_unknown_and_missing_devices_are_refused() -> None:
    with pytest.raises(UserError, match="`tpu`"):
        device_of("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device"):
            device_of("cuda")
