"""Writes the conformance traces: `python -m tests.conformance.generate`.

Every rule is written down here once more, in plain Python over probabilities and straight from its
description, sharing nothing with the loop. The README in this folder describes the files.
"""

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PROMPT, LENGTH, BLOCK = [1, 2, 3, 4], 12, 4
MASK, VOCABULARY, EOS = 9, 10, 7
DIGITS = 6

Found = dict[int, dict[str, Any]]  # by position: id1, l1, l2, p, entropy, p_held, topk_…
Turn = tuple[list[int], int, list[int]]  # masks that are open, quota, tokens that may be replaced
Chosen = tuple[list[int], dict[int, int]]  # positions to commit, replaced tokens by position


@dataclass
class Run:
    """A canvas that a rule is filling."""

    settings: dict[str, Any]
    block: int = BLOCK
    canvas: list[int] = field(default_factory=lambda: PROMPT + [MASK] * LENGTH)
    credit: dict[tuple[int, int], float] = field(default_factory=dict)  # by position and token
    chosen: dict[int, int] = field(default_factory=dict)  # by position, where it is not id1
    taken: int = 0  # how many the call before took

    def masks(self, start: int = 0, stop: int = len(PROMPT) + LENGTH) -> list[int]:
        return [i for i in range(start, stop) if self.canvas[i] == MASK]

    def blocks(self) -> Iterator[tuple[int, int]]:
        for start in range(len(PROMPT), len(PROMPT) + LENGTH, self.block):
            yield start, start + self.block


# Which positions are open


def evenly(run: Run) -> Iterator[Turn]:
    blocks = LENGTH // BLOCK
    calls = run.settings.get("steps", LENGTH) // blocks
    for start, stop in run.blocks():
        for call in range(calls):
            quota = BLOCK // calls + (call < BLOCK % calls)
            if quota:
                yield run.masks(start, stop), quota, []


def evenly_in_each_block(run: Run) -> Iterator[Turn]:
    calls = run.settings.get("steps", BLOCK)
    if "minimal_topk" in run.settings:
        calls = min(calls, LENGTH // run.settings["minimal_topk"])
    for start, stop in run.blocks():
        for call in range(calls):
            if masks := run.masks(start, stop):
                yield masks, BLOCK // calls + (call < BLOCK % calls), []


def until_full(run: Run) -> Iterator[Turn]:
    for start, stop in run.blocks():
        while masks := run.masks(start, stop):
            yield masks, 0, []


def at_most(run: Run) -> Iterator[Turn]:
    for start, stop in run.blocks():
        while masks := run.masks(start, stop):
            yield masks, math.ceil(LENGTH / run.settings["steps"]), []


def in_steps(run: Run) -> Iterator[Turn]:
    for start, stop in run.blocks():
        for call in range(1, run.settings["steps"] + 1):
            if masks := run.masks(start, stop):
                yield masks, len(masks) if call == run.settings["steps"] else 0, []


def in_parts(run: Run) -> Iterator[Turn]:
    size = run.settings["sub_block_length"]
    for start, stop in run.blocks():
        for first in range(start, stop, size):
            while masks := run.masks(first, min(first + size, stop)):
                yield masks, 0, []


def with_edits(run: Run) -> Iterator[Turn]:
    for start, stop in run.blocks():
        post = 0
        while True:
            masks, before = run.masks(start, stop), list(run.canvas)
            post += not masks
            if post > run.settings["max_post_steps"]:
                break
            tokens = [i for i in range(start, stop) if run.canvas[i] != MASK]
            yield masks, run.settings["num_to_transfer"], tokens
            if not masks and run.canvas == before:
                break


def with_doubts(run: Run) -> Iterator[Turn]:
    for start, stop in run.blocks():
        run.taken = 30
        while masks := run.masks(start, stop):
            tokens = [i for i in range(start, stop) if i not in masks]
            yield masks, min(max(int(len(masks) * 0.7), 5), 20), tokens
            run.taken = sum(run.canvas[i] != MASK for i in masks)


def by_time(run: Run) -> Iterator[Turn]:
    """Exact here in double precision: no product of the schedule comes near an integer."""
    steps, eps = run.settings["steps"], 1e-3
    times = [1 + (eps - 1) * i / steps for i in range(steps + 1)]
    for call in range(steps):
        masks = run.masks()
        share = 1 if call == steps - 1 else 1 - times[call + 1] / times[call]
        if quota := int(len(masks) * share):
            yield masks, quota, []


def with_remasks(run: Run) -> Iterator[Turn]:
    steps = run.settings["steps"]
    for call in range(1, steps + 1):
        masks = run.masks()
        tokens = [i for i in range(len(PROMPT), len(run.canvas)) if run.canvas[i] != MASK]
        yield masks, LENGTH - LENGTH * (steps - call) // steps, tokens


# What is taken


def best(found: Found, among: list[int], key: Callable[[dict[str, float]], float]) -> list[int]:
    return sorted(among, key=lambda i: (-key(found[i]), i))


def p(one: dict[str, Any]) -> float:
    return float(one["p"])


def surest(run: Run, found: Found, turn: Turn) -> Chosen:
    return best(found, turn[0], p)[: turn[1]], {}


def surest_margin(run: Run, found: Found, turn: Turn) -> Chosen:
    def margin(one: dict[str, float]) -> float:
        return one["p"] * (1 - math.exp(one["l2"] - one["l1"]))

    return best(found, turn[0], margin)[: turn[1]], {}


def least_entropy(run: Run, found: Found, turn: Turn) -> Chosen:
    return best(found, turn[0], lambda one: -one["entropy"])[: turn[1]], {}


def from_the_left(run: Run, found: Found, turn: Turn) -> Chosen:
    return turn[0][: turn[1]], {}


def at_least(run: Run, found: Found, turn: Turn) -> Chosen:
    if turn[1]:
        return turn[0], {}
    passing = [i for i in turn[0] if found[i]["p"] >= run.settings["threshold"]]
    return passing or best(found, turn[0], p)[:1], {}


def more_than(run: Run, found: Found, turn: Turn) -> Chosen:
    passing = [i for i in turn[0] if found[i]["p"] > run.settings["threshold"]]
    return passing or best(found, turn[0], p)[:1], {}


def more_than_or_quota(run: Run, found: Found, turn: Turn) -> Chosen:
    passing = [i for i in turn[0] if found[i]["p"] > run.settings["threshold"]]
    return passing if len(passing) >= turn[1] else best(found, turn[0], p)[: turn[1]], {}


def near_the_best(run: Run, found: Found, turn: Turn) -> Chosen:
    most = max(found[i]["p"] for i in turn[0])
    need = min(run.settings["threshold"], most - 1e-5)
    return [i for i in turn[0] if found[i]["p"] >= need], {}


def with_credit(run: Run, found: Found, turn: Turn) -> Chosen:
    settings, sure = run.settings, {}
    for key in run.credit:
        run.credit[key] *= settings["credit_beta"]
    for i in turn[0]:
        one = found[i]
        key = (i, int(one["id1"]))
        run.credit[key] = run.credit.get(key, 0) + one["p"] ** settings["credit_gamma"]
        logits = dict(zip(one["topk_ids"], one["topk_logits"], strict=True))
        for token in logits:
            credit = run.credit.get((i, token), 0)
            logits[token] += settings["credit_alpha"] * math.log(1 + credit)
        run.chosen[i] = min(logits, key=lambda token: (-logits[token], token))
        total = sum(math.exp(x) for x in logits.values())
        sure[i] = {"p": math.exp(logits[run.chosen[i]]) / total}
    return near_the_best(run, sure, turn)


def in_runs(run: Run, found: Found, turn: Turn) -> Chosen:
    taken = set(best(found, turn[0], p)[:1])
    taken |= {i for i in turn[0] if found[i]["p"] > run.settings["threshold"]}
    for first in (i for i in turn[0] if i - 1 not in turn[0]):
        neighbours = [first]
        while neighbours[-1] + 1 in turn[0]:
            neighbours.append(neighbours[-1] + 1)
        top = best(found, neighbours, p)[0]
        taken |= {top} if found[top]["p"] > run.settings["low_threshold"] else set()
    return sorted(taken), {}


def around_anchors(run: Run, found: Found, turn: Turn) -> Chosen:
    anchors = [i for i in turn[0] if found[i]["p"] >= run.settings["threshold"]]
    near = [
        i
        for i in turn[0]
        if found[i]["p"] >= run.settings["low_threshold"]
        and any(abs(i - a) <= run.settings["radius"] for a in anchors)
    ]
    return sorted({*anchors, *near}) or best(found, turn[0], p)[:1], {}


def not_adjacent(run: Run, found: Found, turn: Turn) -> Chosen:
    taken: list[int] = []
    for i in best(found, turn[0], p):
        sure = found[i]["p"] >= run.settings["threshold"]
        if len(taken) < turn[1] and (sure or not {i - 1, i + 1} & set(taken)):
            taken.append(i)
    return taken, {}


def by_factor(run: Run, found: Found, turn: Turn) -> Chosen:
    order, count = best(found, turn[0], p), 0
    for n, i in enumerate(order, start=1):
        passes = n == 1 or found[i]["p"] >= 1 - run.settings["factor"] / (n + 1)
        count += passes or n == len(order)
        if not passes:
            break
    return order[:count], {}


def within_entropy(run: Run, found: Found, turn: Turn) -> Chosen:
    order = sorted(turn[0], key=lambda i: (found[i]["entropy"], i))
    taken = order[:1]
    for i in order[1:]:
        # the largest of them, i itself, is left out of the sum
        if sum(found[j]["entropy"] for j in taken) > run.settings["gamma"]:
            break
        taken.append(i)
    return taken, {}


def filled_and_edited(run: Run, found: Found, turn: Turn) -> Chosen:
    filled = more_than_or_quota(run, found, turn)[0] if turn[0] else []
    sure = [i for i in turn[2] if found[i]["p"] > run.settings["editing_threshold"]]
    return filled, {i: int(found[i]["id1"]) for i in sure if found[i]["id1"] != run.canvas[i]}


def planned(run: Run, found: Found, turn: Turn) -> Chosen:
    def standing(i: int) -> float:
        return float(found[i]["p" if i in turn[0] else "p_held"])

    order = sorted([*turn[0], *turn[2]], key=lambda i: (-standing(i), i))[: turn[1]]
    return [i for i in turn[0] if i in order], {i: MASK for i in turn[2] if i not in order}


def doubted(run: Run, found: Found, turn: Turn) -> Chosen:
    passing = more_than(run, found, turn)[0]
    filled = passing if len(passing) <= turn[1] else best(found, turn[0], p)[: turn[1]]
    if len(filled) < 2:
        return filled, {}
    unsure = [i for i in turn[2] if found[i]["p_held"] < run.settings["keep_threshold"]]
    unsure.sort(key=lambda i: (found[i]["p_held"], i))
    return filled, dict.fromkeys(unsure[: run.taken - 1], MASK)


def early(run: Run, found: Found, turn: Turn) -> Chosen:
    """Prophet on top of even quotas: everything once the mean gap is large enough."""
    masks = run.masks()
    gap = sum(found[i]["l1"] - found[i]["l2"] for i in masks) / len(masks)
    done = 1 - len(masks) / LENGTH
    need = 7.5 if done < 1 / 3 else 5.0 if done < 2 / 3 else 2.5
    return (masks, {}) if gap >= need else surest(run, found, turn)


# Canvases that grow


def daedal(run: Run, look: Callable[[list[int]], Found]) -> Iterator[dict[str, Any]]:
    """The calls of a run that starts short; `look` gives reductions for positions."""
    settings, most = run.settings, len(PROMPT) + LENGTH
    del run.canvas[len(PROMPT) + settings["initial_length"] :]

    def end(found: Found) -> float:
        sure = [found[i]["p"] for i in sorted(found, reverse=True) if found[i]["id1"] == EOS]
        return float(sum(sure[: settings["eos_window"]]) / settings["eos_window"])

    while len(run.canvas) < most:
        before, found = list(run.canvas), look(list(range(len(PROMPT), len(run.canvas))))
        grown = []
        if end(found) < settings["eos_threshold"]:
            grown = [[len(before), min(settings["growth"], most - len(before))]]
            run.canvas += [MASK] * grown[0][1]
        yield {"canvas": before, "found": found, "commits": [], "edits": [], "grown": grown}
        if not grown:
            break
    run.canvas += [EOS] * min(settings["eos_window"] // 2, most - len(run.canvas))
    for start, stop in run.blocks():
        while masks := run.masks(start, min(stop, len(run.canvas))):
            before, found = list(run.canvas), look(list(range(len(PROMPT), len(run.canvas))))
            taken = more_than(run, found, (masks, 0, []))[0]
            commits, grown = [[i, int(found[i]["id1"])] for i in sorted(taken)], []
            for i, token in commits:
                run.canvas[i] = token
            unsure = [i for i in masks if i not in taken]
            unsure = [i for i in unsure if found[i]["p"] < settings["low_threshold"]]
            if unsure and end(found) < 0.9 and len(run.canvas) < most:
                at = min(unsure, key=lambda i: (found[i]["p"], i))
                grown = [[at, min(settings["growth"] - 1, most - len(run.canvas))]]
                run.canvas[at:at] = [MASK] * grown[0][1]
            yield {"canvas": before, "found": found, "commits": commits, "edits": [],
                   "grown": grown}  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """How one file is made."""

    turns: Callable[[Run], Iterator[Turn]]
    choose: Callable[[Run, Found, Turn], Chosen]
    reads: tuple[str, ...] = ("id1", "rest")
    settings: dict[str, Any] = field(default_factory=dict)
    sampler: str = ""  # where it is not the name of the file
    scale: float = 2.5  # standard deviation of the logits
    block: int = BLOCK


SHARP, EDGE = ("id1", "l1", "l2", "rest"), ("id1", "rest", "entropy")
RULES = {
    "low-confidence": Rule(evenly, surest, settings={"steps": 6}),
    "leftmost": Rule(evenly, from_the_left, settings={"steps": 9}),
    "early-commit": Rule(
        evenly, early, SHARP, {"steps": 12, "early_commit": True}, "low-confidence", 7.0
    ),
    "lfm-adjacency": Rule(at_most, not_adjacent, settings={"steps": 6, "threshold": 0.8}),
    "threshold": Rule(until_full, at_least, settings={"threshold": 0.7}),
    "factor": Rule(until_full, by_factor, settings={"factor": 1.2}),
    "dinfer-threshold": Rule(until_full, near_the_best, settings={"threshold": 0.7}),
    "credit": Rule(
        until_full,
        with_credit,
        ("id1", "l1", "rest", "topk_ids", "topk_logits"),
        {"threshold": 0.6, "credit_alpha": 1.5, "credit_beta": 0.8, "credit_gamma": 0.2},
        scale=1.2,
    ),
    "dinfer-hierarchy": Rule(
        until_full, in_runs, settings={"threshold": 0.8, "low_threshold": 0.4}
    ),
    "local-leap": Rule(
        until_full, around_anchors, settings={"threshold": 0.8, "low_threshold": 0.5, "radius": 1}
    ),
    "entropy-bounded": Rule(until_full, within_entropy, EDGE, {"gamma": 1.0}),
    "daedal": Rule(
        until_full,
        more_than,
        settings={
            "threshold": 0.7,
            "low_threshold": 0.4,
            "initial_length": 2,
            "growth": 3,
            "eos_threshold": 0.5,
            "eos_window": 2,
        },
    ),
    "nemotron": Rule(in_steps, at_least, settings={"threshold": 0.9, "steps": 2}),
    "fast-dllm-v2": Rule(in_parts, more_than, settings={"threshold": 0.7, "sub_block_length": 2}),
    "sdar-static": Rule(evenly_in_each_block, surest, settings={"steps": 3}),
    "sdar-dynamic": Rule(
        evenly_in_each_block, more_than_or_quota, settings={"steps": 3, "threshold": 0.6}
    ),
    "sdar-sequential": Rule(evenly_in_each_block, from_the_left, settings={"steps": 3}),
    "sdar-entropy": Rule(until_full, within_entropy, EDGE, {"gamma": 0.8}),
    "llada2-threshold": Rule(
        evenly_in_each_block, more_than_or_quota, settings={"threshold": 0.6, "minimal_topk": 4}
    ),
    "llada2-edit": Rule(
        with_edits,
        filled_and_edited,
        settings={
            "threshold": 0.7,
            "editing_threshold": 0.6,
            "max_post_steps": 3,
            "num_to_transfer": 1,
        },
    ),
    "maskgit-plus": Rule(by_time, surest, settings={"steps": 5}),
    "topk-margin": Rule(by_time, surest_margin, SHARP, {"steps": 5}),
    "entropy": Rule(by_time, least_entropy, EDGE, {"steps": 5}),
    "wino": Rule(
        with_doubts,
        doubted,
        ("id1", "l1", "rest", "l_held"),
        {"threshold": 0.3, "keep_threshold": 0.2},
        block=LENGTH,
    ),
    "p2": Rule(with_remasks, planned, ("id1", "l1", "rest", "l_held"), {"steps": 5}),
}


def reductions(rng: random.Random, held: int, rule: Rule, more_end: float = 0.0) -> dict[str, Any]:
    """Of made-up logits, rounded to what stands in the file."""
    logits = [rng.gauss(0, rule.scale) for _ in range(VOCABULARY)]
    logits[MASK] = -1e4
    logits[EOS] += more_end
    order = sorted(range(VOCABULARY), key=lambda i: -logits[i])
    odds = [math.exp(x - logits[order[0]]) for x in logits]
    total = sum(odds)
    entropy = -sum(q / total * math.log(q / total) for q in odds if q > 0)
    found = {"l1": logits[order[0]], "l2": logits[order[1]], "l_held": logits[held]}
    found |= {"rest": total - 1, "entropy": entropy}
    rounded: dict[str, Any] = {
        k: float(f"{v:.{DIGITS}g}") for k, v in found.items() if k in rule.reads
    }
    if "topk_ids" in rule.reads:  # all of the vocabulary
        top = [float(f"{logits[i]:.{DIGITS}g}") for i in order]
        rounded |= {"topk_ids": order, "topk_logits": top}
    return {"id1": order[0]} | rounded


def seen(one: dict[str, Any]) -> dict[str, Any]:
    """The same with probabilities."""
    more = {"p": 1 / (1 + one["rest"])}
    if "l_held" in one:
        more["p_held"] = more["p"] * math.exp(one["l_held"] - one["l1"])
    return one | more


def growing(run: Run, rule: Rule, rng: random.Random) -> list[dict[str, Any]]:
    """The calls of DAEDAL; an end is the likelier the further to the right."""
    calls = []

    def look(window: list[int]) -> Found:
        ends = {i: 1.2 * (i - len(PROMPT)) - 4 for i in window}
        return {i: seen(reductions(rng, run.canvas[i], rule, ends[i])) for i in window}

    for call in daedal(run, look):
        found = call.pop("found")
        columns = {key: [found[i][key] for i in found] for key in rule.reads}
        calls.append({"canvas": call.pop("canvas"), "window": list(found), **columns, **call})
    return calls


def trace(name: str) -> dict[str, Any]:
    """The content of one file."""
    rule, rng = RULES[name], random.Random(name)
    run = Run(rule.settings, rule.block)
    calls = growing(run, rule, rng) if name == "daedal" else in_turns(run, rule, rng)
    return {
        "sampler": rule.sampler or name,
        "settings": rule.settings,
        "prompt_length": len(PROMPT),
        "gen_length": LENGTH,
        "block_length": rule.block,
        "mask_id": MASK,
        **({"eos_id": EOS} if name == "daedal" else {}),
        "vocabulary": VOCABULARY,
        "calls": calls,
        "canvas": run.canvas,
    }


def in_turns(run: Run, rule: Rule, rng: random.Random) -> list[dict[str, Any]]:
    """The calls of a rule that fills a canvas of its length."""
    calls: list[dict[str, Any]] = []
    for turn in rule.turns(run):
        watched = run.masks() if rule.settings.get("early_commit") else turn[0]
        window = sorted({*watched, *turn[2]})
        found = {i: reductions(rng, run.canvas[i], rule) for i in window}
        filled, replaced = rule.choose(run, {i: seen(one) for i, one in found.items()}, turn)
        before = list(run.canvas)
        commits = [[i, run.chosen.get(i, int(found[i]["id1"]))] for i in sorted(filled)]
        edits = [[i, before[i], new] for i, new in sorted(replaced.items())]
        for i, token in [*commits, *((i, new) for i, _, new in edits)]:
            run.canvas[i] = token
        columns = {key: [found[i][key] for i in window] for key in rule.reads}
        calls.append(
            {"canvas": before, "window": window, **columns, "commits": commits, "edits": edits}
        )
        if not run.masks() and rule.settings.get("early_commit"):
            break
    return calls


def to_text(content: dict[str, Any]) -> str:
    """JSON with one call a line."""
    head = {key: value for key, value in content.items() if key != "calls"}
    calls = ",\n".join(json.dumps(call) for call in content["calls"])
    return json.dumps(head)[:-1] + ', "calls": [\n' + calls + "\n]}\n"


def main() -> None:
    """Write all files."""
    for name in RULES:
        (FOLDER / f"{name}.json").write_text(to_text(trace(name)))


if __name__ == "__main__":
    main()
