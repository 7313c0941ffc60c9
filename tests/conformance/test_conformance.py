"""The loop commits what the traces say, and the traces are those of the generator."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from exporter.runtime.bundle import ModelFacts
from exporter.runtime.loop import decode
from exporter.runtime.samplers import SAMPLERS
from exporter.runtime.session import Bools, Cache, Ints, Reductions
from exporter.runtime.settings import Settings
from tests.conformance.generate import FOLDER, LENGTH, PROMPT, RULES, to_text, trace

FILES = sorted(FOLDER.glob("*.json"))
RANDOM = {"random", "origin"}  # their order is drawn


@dataclass
class Recorded:
    """Gives the reductions of a trace back, call by call."""

    calls: list[dict[str, Any]]
    asked: list[frozenset[str]] = field(default_factory=list)

    def forward(
        self,
        ids: Ints,
        key_mask: Bools,
        window: Ints,
        special_bias: npt.NDArray[np.float32],
        cfg_scale: float | None,
        temperature: float | None,
        wanted: frozenset[str],
        cache: Cache | None = None,
        start: int = 0,
        causal: bool = False,
        shadow: Ints | None = None,
    ) -> Reductions:
        call = self.calls[len(self.asked)]
        self.asked.append(wanted)
        assert ids.tolist() == [call["canvas"]]
        if shadow is not None:  # of all of the block, whose tokens it predicts
            lo, hi = int(shadow.min()), int(shadow.max()) + 1
            assert shadow.tolist() == [list(range(lo, hi))]
            window = np.where(window < ids.shape[1], window, window - ids.shape[1] + lo)
        places = [call["window"].index(position) for position in window]
        assert sorted(window.tolist()) == call["window"]
        own = {name: "l_held" if name == "l_unseen" else name for name in wanted}
        self.asked[-1] = frozenset(own.values())
        return {name: np.asarray([call[own[name]]])[:, places] for name in wanted}

    def new_cache(self, rows: int, length: int) -> Cache:
        raise AssertionError("traces have no cache")


def facts_of(content: dict[str, Any]) -> ModelFacts:
    return ModelFacts(
        family="any", name="trace", attention="full", shift=False, corruption="absorbing",
        block_seed="mask", vocab_size=content["vocabulary"], max_length=64,
        mask_id=content["mask_id"], eos_id=content.get("eos_id"), eot_id=None, pad_id=0,
        special_ids=(),
    )  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_loop_follows_the_trace(file: Path) -> None:
    content = json.loads(file.read_text())
    settings = Settings(
        sampler=content["sampler"],
        gen_length=content["gen_length"],
        block_length=content["block_length"],
        early_stop=False,
        **content["settings"],
    )
    calls, start = content["calls"], content["prompt_length"]
    prompt = calls[0]["canvas"][:start]
    canvas = np.asarray([prompt + content["gen_length"] * [content["mask_id"]]])
    session, key_mask = Recorded(calls), np.ones(canvas.shape, bool)
    steps = decode(session, facts_of(content), settings, canvas, start, key_mask)
    for step, call in zip(steps, calls, strict=True):
        assert [[position, token] for _, position, token in step.commits] == call["commits"]
        assert [[at, old, new] for _, at, old, new in step.edits] == call["edits"]
        assert [[at, count] for _, at, count in step.grown] == call.get("grown", [])
    assert canvas[key_mask].tolist() == content["canvas"]
    assert set().union(*session.asked) <= calls[0].keys()


@pytest.mark.parametrize("name", RULES)
def test_files_are_what_the_generator_writes(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text() == to_text(trace(name))


def test_every_rule_that_does_not_draw_has_a_trace() -> None:
    assert {rule.sampler or name for name, rule in RULES.items()} == set(SAMPLERS) - RANDOM
    assert {file.stem for file in FILES} == set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_traces_put_their_rule_to_the_test(name: str) -> None:
    """Some call takes more than one, or less than all; early commit happens; edits are made."""
    calls = trace(name)["calls"]
    sizes = {len(call["commits"]) for call in calls}
    assert len(sizes) > 1 or name in ("low-confidence", "nemotron")
    if SAMPLERS[RULES[name].sampler or name].credited:  # more than are sure enough without it
        need = RULES[name].settings["threshold"]
        sure = [sum(1 / (1 + rest) >= need for rest in call["rest"]) for call in calls]
        assert any(len(c["commits"]) > max(n, 1) for c, n in zip(calls, sure, strict=True))
    if SAMPLERS[RULES[name].sampler or name].grows:
        assert any(call["grown"] and call["commits"] for call in calls)
        assert any(call["grown"] and not call["commits"] for call in calls)
        assert not calls[-1]["grown"] and len(trace(name)["canvas"]) < len(PROMPT) + LENGTH
    if SAMPLERS[RULES[name].sampler or name].revises:
        assert any(call["edits"] for call in calls)
