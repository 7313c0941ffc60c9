"""The shipped block-causal model: what it was trained for works, and its cache changes nothing."""

from dataclasses import replace

import numpy as np
import pytest

from exporter.checkpoint import open_checkpoint
from exporter.decoding import DecodeOptions, default_settings, describe_model, loop_facts
from exporter.float_session import FloatModel, FloatSession
from exporter.prompts import used_vocabulary
from exporter.runtime.loop import Result, decode
from exporter.runtime.task import make_canvas
from exporter.tasks import held_out_examples, held_out_tasks, is_correct, reference_folder
from exporter.tokenizer import read_tokenizer

CHECKPOINT = open_checkpoint(reference_folder("blocks"))
SETTINGS = default_settings(CHECKPOINT, DecodeOptions())
FACTS = loop_facts(describe_model(CHECKPOINT, "", used_vocabulary(CHECKPOINT), 64))
SESSION = FloatSession(FloatModel(CHECKPOINT), FACTS.vocab_size)


@pytest.mark.parametrize("sampler", ["sdar-static", "sdar-dynamic", "llada2-threshold"])
def test_the_exact_cache_changes_no_answer_and_saves_what_is_fed(sampler: str) -> None:
    tokenizer = read_tokenizer(CHECKPOINT.folder)
    assert tokenizer is not None
    examples = [
        e for name in held_out_tasks("blocks") for e in held_out_examples(name, "blocks")[:8]
    ]
    prompts = [tokenizer.encode(example.prompt).ids for example in examples]
    found, fed = {}, {}
    for cache in ("none", "exact"):
        settings = replace(SETTINGS, sampler=sampler, cache=cache)
        canvas, start, mask = make_canvas(prompts, settings.gen_length, FACTS)
        result = Result(canvas)
        steps = list(decode(SESSION, FACTS, settings, canvas, start, mask, result))
        found[cache] = canvas
        fed[cache] = sum(step.stop - step.start for step in steps)
    assert np.array_equal(found["none"], found["exact"])
    assert fed["exact"] < fed["none"]
    texts = [tokenizer.decode(row[11:].tolist()).split("<eos>")[0] for row in found["exact"]]
    right = sum(is_correct(e, text) for e, text in zip(examples, texts, strict=True))
    # of 24 prompts, each right with probability .9 or more, 17 or fewer are with one of 90
    assert right >= 18
