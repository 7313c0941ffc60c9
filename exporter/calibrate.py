"""The calibration stage: roll out the float model with the deployed sampler, draw states, weigh.

The decode loop is the emitted one; only the session behind it is the float model.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporter.decoding import for_answer, most_calls, with_room
from exporter.float_session import ROWS_AT_ONCE, TOKENS_AT_ONCE, FloatModel, FloatSession
from exporter.progress import Progress, Step
from exporter.prompts import Prompts
from exporter.recipes import Recipe
from exporter.reductions import SUPPRESSED
from exporter.runtime.bundle import ModelFacts
from exporter.runtime.loop import decode
from exporter.runtime.session import Bools
from exporter.runtime.settings import Settings
from exporter.runtime.task import make_canvas
from exporter.tensor_files import read_header, write_atomically, write_tensors
from exporter.work import Work, to_json
from passes.base import Team
from passes.calibrate.states import CalibrationSet, State, digest

SCORED_AT_ONCE = 16 * TOKENS_AT_ONCE  # tokens for which the model is read once to score states
PROMPTS_AT_ONCE = 64  # rows that are decoded in lockstep


def calibrate(
    model: FloatModel,
    digest_of_weights: str,
    facts: ModelFacts,
    settings: Settings,
    prompts: Prompts,
    recipe: Recipe,
    team: Team,
    work: Work,
    progress: Progress,
) -> CalibrationSet | None:
    """The weighed calibration set of a recipe; None when it needs none."""
    if recipe.draw is None:
        return None
    folder = work.stage(
        "calibrate", digest_of_weights, facts, settings, prompts.calibration, prompts.lengths,
        recipe.draw, recipe.weigh,
    )  # fmt: skip
    if all(team.collect((folder / "counts.json").is_file())):
        return _load(folder)
    pool = roll_out(model, facts, settings, prompts, team, progress)
    states, counts = recipe.draw(pool)
    _score(model, facts, states, team, progress)
    calibration = CalibrationSet(states, digest(states), counts)
    if recipe.weigh is not None:
        calibration.counts |= {f"cgq_{k}": v for k, v in recipe.weigh(calibration).items()}
    if team.rank == 0:
        _save(folder, calibration)
    return calibration


def roll_out(
    model: FloatModel,
    facts: ModelFacts,
    settings: Settings,
    prompts: Prompts,
    team: Team,
    progress: Progress,
) -> list[State]:
    """Every state that the float model passes through while it answers the prompts, the finished
    sequences (`finished`) included.
    """
    session = FloatSession(model, facts.vocab_size)
    pool: list[State] = []
    mine = _lockstep(prompts)[team.rank :: team.size]
    causal = facts.attention == "block-causal"
    plans = [for_answer(settings, prompts.lengths[batch[0]], causal) for batch in mine]
    with progress.stage("roll out", sum(map(most_calls, plans))) as step:
        for batch, plan in zip(mine, plans, strict=True):
            rows = [list(prompts.calibration[i]) for i in batch]
            pool += _trajectory(session, facts, plan, rows, batch, step)
    return [state for part in team.collect(pool) for state in part]


def _lockstep(prompts: Prompts) -> list[list[int]]:
    """Numbers of prompts that are decoded together: answers of one length, prompts alike."""
    by_answer: dict[int | None, list[int]] = {}
    order = sorted(range(len(prompts.calibration)), key=lambda i: (len(prompts.calibration[i]), i))
    for number in order:
        by_answer.setdefault(prompts.lengths[number], []).append(number)
    return [
        group[i : i + PROMPTS_AT_ONCE]
        for group in by_answer.values()
        for i in range(0, len(group), PROMPTS_AT_ONCE)
    ]


def _trajectory(
    session: FloatSession,
    facts: ModelFacts,
    settings: Settings,
    prompts: list[list[int]],
    numbers: list[int],
    done: Step,
) -> Iterator[State]:
    """States of prompts that are decoded in lockstep, the finished ones at the end.

    `done` is called after each model call.
    """
    canvas, prompt_length, key_mask = make_canvas(prompts, settings.gen_length, facts)
    settings = with_room(settings, session.model.spec, *canvas.shape)
    surety = np.ones(canvas.shape, np.float32)  # probability at commit time; 1 for the prompt
    forwards = [0] * len(numbers)  # of each row: one that waits for another in lockstep takes none
    block = 0
    for step in decode(session, facts, settings, canvas, prompt_length, key_mask):
        block = step.block
        written = step.commits + [(row, position, new) for row, position, _, new in step.edits]
        for row, number in enumerate(numbers):
            position = next((position for r, position, _ in written if r == row), None)
            if position is None:
                continue  # this row waits or has ended
            if step.causal:  # what it saw is causal in the states after it, too
                forwards[row] += 1
                continue
            valid, answer = _seen(facts, key_mask[row], prompt_length, position)
            is_mask = valid & (step.canvas_before[row] == facts.mask_id)
            yield State(
                ids=torch.from_numpy(step.canvas_before[row].copy()),
                is_mask=torch.from_numpy(is_mask),
                valid=torch.from_numpy(valid),
                prompt=number,
                block=step.block,
                step=forwards[row],
                mask_ratio=float(is_mask[answer].mean()),
                commit_score=torch.from_numpy(surety[row].copy()),
            )
            forwards[row] += 1
        places = np.searchsorted(step.window, [position for _, position, _ in written])
        for (row, position, _), place in zip(written, places, strict=True):
            surety[row, position] = 1 / (1 + step.reductions["rest"][row, place])
        done()
    for row, number in enumerate(numbers):
        yield State(
            ids=torch.from_numpy(canvas[row].copy()),
            is_mask=torch.zeros(canvas.shape[1], dtype=torch.bool),
            valid=torch.from_numpy(key_mask[row].copy()),
            prompt=number,
            block=block,
            step=forwards[row],
            mask_ratio=0.0,
            commit_score=torch.from_numpy(surety[row].copy()),
            finished=True,
        )


def _seen(
    facts: ModelFacts, key_mask: Bools, prompt_length: int, position: int
) -> tuple[Bools, slice]:
    """What a model sees (S,) while it fills `position`, and the answer that mask ratios are about.

    A block-causal model sees nothing behind the block, which is all of the answer that it fills.
    """
    if facts.attention != "block-causal" or facts.block_length is None:
        return key_mask.copy(), slice(prompt_length, None)
    first, size = int(key_mask.argmax()), facts.block_length
    if facts.commit == "causal":
        first = prompt_length
    start = first + (position - first) // size * size
    valid = key_mask & (np.arange(len(key_mask)) < start + size)
    behind = max(start, prompt_length)
    return valid, slice(behind if behind < start + size else start, start + size)


@torch.no_grad()
def _score(
    model: FloatModel, facts: ModelFacts, states: list[State], team: Team, progress: Progress
) -> None:
    """Fill `score`: the probability of the token held, or of the candidate where masked."""
    mine = batch_states(states, SCORED_AT_ONCE)[team.rank :: team.size]
    scores: dict[int, torch.Tensor] = {}
    with progress.stage("score", len(mine)) as step:
        for batch in mine:
            ids = torch.stack([states[i].ids for i in batch])
            mask = torch.stack([states[i].is_mask for i in batch])
            valid = torch.stack([states[i].valid for i in batch])
            hidden = model.hidden(ids, valid)
            if model.spec.shift:  # row i − 1 predicts position i
                hidden = torch.cat((hidden[:, :1], hidden[:, :-1]), 1)
            flat = zip(
                hidden.flatten(0, 1).split(ROWS_AT_ONCE),
                ids.flatten().split(ROWS_AT_ONCE),
                mask.flatten().split(ROWS_AT_ONCE),
                strict=True,
            )
            parts = [_held_probability(model, facts, *rows) for rows in flat]
            scores |= zip(batch, torch.cat(parts).reshape(ids.shape), strict=True)
            step()
    for part in team.collect(scores):
        for index, score in part.items():
            states[index].score = score


def _held_probability(
    model: FloatModel, facts: ModelFacts, rows: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """softmax(logits)[id] of hidden rows (N, D), or its largest entry where masked; fp32 (N,)."""
    total = torch.full((len(rows),), -torch.inf, dtype=torch.float64)
    best, held = total.clone(), total.clone()
    for first, part in model.logit_slices(rows):
        logits = part.double().cpu()
        if first <= facts.mask_id < first + logits.shape[1]:
            logits[:, facts.mask_id - first] = SUPPRESSED
        logits[:, max(0, facts.vocab_size - first) :] = SUPPRESSED  # padding rows of the head
        total = torch.logaddexp(total, logits.logsumexp(-1))
        best = torch.maximum(best, logits.amax(-1))
        inside = (ids >= first) & (ids < first + logits.shape[1])
        at = logits.gather(1, (ids - first).clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        held = torch.where(inside, at, held)
    return (torch.where(mask, best, held) - total).exp().float()


def batch_states(states: Sequence[State], tokens: int = TOKENS_AT_ONCE) -> list[list[int]]:
    """Indices of states of equal length, about so many tokens together, in stable order."""
    by_length: dict[int, list[int]] = {}
    for index, state in enumerate(states):
        by_length.setdefault(len(state.ids), []).append(index)
    batches: list[list[int]] = []
    for length, group in sorted(by_length.items()):
        count = max(1, tokens // length)
        batches += [group[i : i + count] for i in range(0, len(group), count)]
    return batches


FIELDS = ("ids", "is_mask", "valid", "score", "commit_score")


def _save(folder: Path, calibration: CalibrationSet) -> None:
    tensors = {f"{i}.weight": w for i, w in enumerate(calibration.weights)}
    facts = []
    for index, state in enumerate(calibration.states):
        content = vars(state)
        tensors |= {f"{index}.{name}": content[name] for name in FIELDS}
        facts.append({k: v for k, v in content.items() if k not in FIELDS})
    write_tensors(folder / "states.safetensors", tensors)
    content = {
        "counts": calibration.counts,
        "provenance": calibration.provenance,
        "states": facts,
    }
    write_atomically(folder / "counts.json", [to_json(content)])  # last: marks the stage as done


def _load(folder: Path) -> CalibrationSet:
    content = json.loads((folder / "counts.json").read_text())
    entries = read_header(folder / "states.safetensors")
    states: list[State] = []
    for i, facts in enumerate(content["states"]):
        tensors: dict[str, Any] = {name: entries[f"{i}.{name}"].read() for name in FIELDS}
        states.append(State(**facts, **tensors))
    calibration = CalibrationSet(states, content["provenance"], content["counts"])
    calibration.weights[:] = [entries[f"{i}.weight"].read() for i in range(len(states))]
    return calibration
