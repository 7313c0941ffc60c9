"""The bench counts what it says it counts, and its command runs."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from exporter.checkpoint import open_checkpoint
from exporter.model import make_context
from exporter.runtime.session import Array, Bools, Cache, Ints, Reductions
from tools import torch_loop
from tools.bench_decode import main, make_case, race
from tools.decode_contestants import Contestant, Timed, multiply_adds
from tools.random_checkpoint import Preset, write_checkpoint

FORWARD, HOST = 0.02, 0.01  # seconds


class Sleeper:
    """A session that takes FORWARD seconds."""

    def forward(
        self,
        ids: Ints,
        key_mask: Bools,
        window: Ints,
        special_bias: Array,
        cfg_scale: float | None,
        temperature: float | None,
        wanted: frozenset[str],
        cache: Cache | None = None,
        start: int = 0,
        causal: bool = False,
        shadow: Ints | None = None,
    ) -> Reductions:
        time.sleep(FORWARD)
        return {}

    def new_cache(self, rows: int, length: int) -> Cache:
        raise AssertionError("the bench decodes without a cache")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path, Preset.TINY.shape)
    return tmp_path


@pytest.mark.parametrize("length", [1, 24])
def test_multiply_adds_are_those_that_torch_counts(tiny: Path, length: int) -> None:
    checkpoint = open_checkpoint(tiny)
    model = torch_loop.load(checkpoint, torch.float32)
    counter, canvas = FlopCounterMode(display=False), torch.zeros(1, length, dtype=torch.int64)
    context = make_context(checkpoint.spec, canvas == 0)
    # torch does not count its fused attention on a CPU
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model.logits(canvas, context)
    assert counter.get_total_flops() == 2 * multiply_adds(checkpoint.spec, length, length)


def test_host_time_is_what_the_runtime_did_not_take(tiny: Path) -> None:
    """A sleep never ends early, so both are at least what was slept."""
    timed = Timed(Sleeper())
    nothing = np.zeros((1, 1), np.int64)

    def run() -> float:
        before = timed.seconds
        for _ in range(2):
            mask = nothing.astype(np.bool_)
            timed.forward(nothing, mask, nothing[0], nothing, None, None, frozenset())
            time.sleep(HOST)
        return timed.seconds - before

    one = Contestant("sleeper", run, "fp32", 0, 0)
    race(make_case("tiny", tiny, 8, 8, 8, steps=2, calls=2), [one], rounds=1)
    assert one.hosts[0] >= HOST
    assert one.steps[0] - one.hosts[0] >= FORWARD


def test_command_races_all_contestants() -> None:
    options = "--model tiny --rounds 1 --steps 4 --calls 2 --threads 1 --json"
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, options.split())
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    rows = {row["contestant"]: row for row in found["rows"]}
    assert len(rows) == 9
    for row in rows.values():
        assert row["tokens/s"] * row["ms a step"] == pytest.approx(1000 * 16 / 4)
        assert row["ms a step"] > (row["host ms"] or 0)
    shape = Preset.TINY.shape
    read = open_weights(shape.layers, shape.width, shape.mlp, shape.vocab)
    assert rows["torch loop, fp32"]["weights MB"] == pytest.approx(4 * read / 1e6)
    # The graph holds a few constants and the suppression of ids beside the weights: below 2 KB.
    extra = rows["emitted loop, fp32"]["weights MB"] - 4 * read / 1e6
    assert 0 < extra < 2e-3
    packed = rows["emitted loop, w4a16, level 0"]["weights MB"]
    # Blocks at 4 bits of 32, the head at 8 of 32, and a scale of 2 bytes a group of 32 or more.
    assert packed < (read / 2 + shape.vocab * shape.width / 2 + read / 16) / 1e6 + 4e-3


def open_weights(layers: int, width: int, mlp: int, vocab: int) -> int:
    """Weights without the embedding."""
    return layers * (4 * width**2 + 3 * width * mlp + 2 * width) + width + vocab * width
