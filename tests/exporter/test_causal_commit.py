"""A model that commits causally: the float model, the graphs and the loop against plain numpy."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.checkpoint import open_checkpoint
from exporter.decoding import DecodeOptions, default_settings
from exporter.errors import UserError
from exporter.evaluation.scoring import opens_logits
from exporter.evaluation.subject import Hardware, open_subject
from exporter.families import Spec, Yarn
from exporter.float_decode import record
from exporter.float_session import FloatModel, FloatSession
from exporter.graph_kind import GraphKind
from exporter.model import frequencies, query_scale
from exporter.progress import Progress
from exporter.quant_options import QuantOptions
from exporter.recipes import Storage
from exporter.runtime import forward
from exporter.runtime.errors import UserError as RuntimeUserError
from exporter.runtime.loop import Result, Step
from exporter.runtime.loop import decode as run
from exporter.runtime.session import Cache, Reductions, Session
from exporter.runtime.settings import Settings
from exporter.runtime.task import make_canvas, make_task
from exporter.simulate import simulated
from exporter.teacher_forcing import compare
from exporter.trajectory import Reference
from tests.causal_commit import (
    BLOCK,
    CONFIG,
    HEADS,
    MASK,
    VOCAB,
    K,
    Plain,
    causal,
    decode,
    filling,
    write,
)
from tests.commands import dqexport
from tests.fixtures_lower import Lowered, lower

PROMPTS = [[3, 5, 7, 9, 2, 4, 8], [1, 2], [30, 31, 32, 33, 34]]
# two blocks of some ten sums of up to HEADS * K products one after the other, in fp32
ERROR = 2 * 10 * HEADS * K * 2**-24


@dataclass(frozen=True)
class Model:
    """One checkpoint, in all forms."""

    plain: Plain
    session: FloatSession
    lowered: Lowered


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = write(tmp_path_factory.mktemp("causal") / "checkpoint", seed=3)
    lowered = lower(open_checkpoint(folder), "fp32", folder.parent / "lowered")
    session = FloatSession(FloatModel(lowered.checkpoint), lowered.bundle.model.vocab_size)
    return Model(Plain.load(folder), session, lowered)


@dataclass(frozen=True)
class Telling:
    """A session that always tells the best logit, too."""

    session: Session

    def forward(self, *args: Any, **named: Any) -> Reductions:
        asked = (*args[:6], args[6] | {"l1"}, *args[7:])
        return self.session.forward(*asked, **named)

    def new_cache(self, rows: int, length: int) -> Cache:
        return self.session.new_cache(rows, length)


def sessions(model: Model) -> dict[str, tuple[Session, str]]:
    """All that can decode, with the cache that they are to be given."""
    sample = GraphKind(sample=True)
    return {
        "float": (model.session, "none"),
        "float cached": (model.session, "exact"),
        "graph": (model.lowered.session(sample), "none"),
        "graph cached": (model.lowered.session(GraphKind(sample=True, cached=True)), "exact"),
    }


def settings(**others: Any) -> Settings:
    values = {"sampler": "nemotron", "gen_length": 12, "block_length": BLOCK, "steps": 3}
    return Settings(**{**values, "threshold": 0.6, "early_stop": False, **others})


def steps_of(
    model: Model, session: Session, prompts: list[list[int]], chosen: Settings
) -> tuple[list[Step], list[list[int]], Result]:
    """The steps and the canvas, without padding at the left."""
    facts = model.lowered.bundle.model
    canvas, length, key_mask = make_canvas(prompts, chosen.gen_length, facts)
    result = Result(canvas)
    steps = list(run(session, facts, chosen, canvas, length, key_mask, result))
    return steps, [row[keep].tolist() for row, keep in zip(canvas, key_mask, strict=True)], result


# The description of a checkpoint


def test_upstreams_configuration_is_understood(model: Model) -> None:
    spec = model.lowered.checkpoint.spec
    assert (spec.attention, spec.commit, spec.block_seed, spec.shift) == (
        "block-causal", "causal", "token", False,
    )  # fmt: skip
    assert spec.commits_causally
    assert (spec.head_dim, spec.width, spec.rope_theta) == (K, CONFIG["hidden_size"], 10000.0)
    assert spec.query_scale is not None
    assert (spec.query_scale.beta, spec.query_scale.length) == (0.3, 12)
    chosen = default_settings(model.lowered.checkpoint, DecodeOptions())
    assert (chosen.sampler, chosen.cache, chosen.block_length) == ("nemotron", "exact", BLOCK)
    assert chosen.limit("threshold") == 0.9


@pytest.mark.parametrize(
    ("rope", "scale"),
    [
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),  # that of the released checkpoints
        ({"mscale": None, "mscale_all_dim": None}, 0.1 * np.log(4.0) + 1),
        ({"attention_factor": 0.5}, 0.5),
        ({"factor": 0.25}, 1.0),
    ],
)
def test_the_attention_factor_is_upstreams(
    rope: dict[str, Any], scale: float, tmp_path: Path
) -> None:
    write(tmp_path, rope_parameters={**CONFIG["rope_parameters"], **rope})
    yarn = open_checkpoint(tmp_path).spec.yarn
    assert yarn is not None
    assert yarn.scale == pytest.approx(scale)


def test_without_yarn_nothing_is_stretched(tmp_path: Path) -> None:
    write(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    spec = open_checkpoint(tmp_path).spec
    assert (spec.yarn, spec.query_scale, spec.rope_theta) == (None, None, 100.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dlm_paradigm": "block_diff"}, "dlm_paradigm = 'block_diff', which is not implemented"),
        ({"rope_parameters": None}, r"lacks \['rope_parameters.rope_theta'\]"),
        ({"rope_parameters": {"rope_theta": 1.0, "rope_type": "llama3"}}, "rope_type = 'llama3'"),
        ({"rope_parameters": {"rope_theta": 1.0, "rope_type": "yarn"}}, "factor = None, not a pos"),
        ({"num_ar_layers": 2}, "num_ar_layers = 2, which is not implemented"),
    ],
)
def test_what_is_not_implemented_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path)


# Positions


def test_frequencies_are_those_that_transformers_checks_itself_by(model: Model) -> None:
    """Every fourth of the numbers in its own test of YaRN, which have five digits."""
    published = [
        1.0, 5.6234e-01, 3.1623e-01, 1.7783e-01, 1.0e-01, 4.8136e-02, 2.2515e-02, 1.0101e-02,
        4.2400e-03, 1.5746e-03, 4.3007e-04, 1.7783e-04, 1.0e-04, 5.6234e-05, 3.1623e-05, 1.7783e-05,
    ]  # fmt: skip
    changed = {"head_dim": 128, "rope_theta": 10000.0, "yarn": Yarn(10.0, 2048, 32.0, 1.0, 1.0)}
    spec = Spec(**{**vars(model.lowered.checkpoint.spec), **changed})
    found = frequencies(spec).numpy()[::4]
    assert np.abs(found / np.asarray(published) - 1).max() <= 5e-5


def test_queries_grow_with_whole_lengths(model: Model) -> None:
    scale = query_scale(model.lowered.checkpoint.spec, torch.tensor([[0, 11, 12, 24]]))
    assert scale is not None
    want = [1.0, 1.0, 1 + 0.3 * np.log(2), 1 + 0.3 * np.log(3)]
    assert scale.flatten().tolist() == pytest.approx(want)


# Logits


@pytest.mark.parametrize(("length", "causally"), [(11, True), (12, False), (31, False), (3, False)])
def test_logits_are_those_of_plain_numpy(model: Model, length: int, causally: bool) -> None:
    ids = np.random.default_rng(length).integers(0, VOCAB, length)
    seen = causal(length) if causally else filling(length, max(length - BLOCK, 0))
    want = model.plain.logits(ids.tolist(), seen)
    everyone = torch.ones(1, length, dtype=torch.bool)
    hidden = model.session.model.hidden(torch.from_numpy(ids)[None], everyone, causal=causally)
    got = torch.cat([part for _, part in model.session.model.logit_slices(hidden[0])], -1)
    assert np.abs(got.numpy() - want).max() <= ERROR * np.abs(want).max()


# The loop


@pytest.mark.parametrize("form", ["float", "float cached", "graph", "graph cached"])
@pytest.mark.parametrize(("threshold", "steps"), [(0.6, 3), (0.3, 4), (1.0, 2), (0.9, 4)])
def test_decoding_is_that_of_a_loop_in_plain_numpy(
    model: Model, form: str, threshold: float, steps: int
) -> None:
    """Each prompt alone: commit by commit, and the logits of what was chosen."""
    session, cache = sessions(model)[form]
    for prompt in PROMPTS:
        want = decode(model.plain, prompt, 3, steps, threshold)
        largest = max(abs(logit) for call in want.best for logit in call.values())
        assert want.margin > 4 * ERROR * largest, "rounding decides nothing here"
        chosen = settings(threshold=threshold, steps=steps, cache=cache)
        found, canvas, result = steps_of(model, Telling(session), [prompt], chosen)
        assert canvas == [want.tokens]
        assert [[commit[1:] for commit in step.commits] for step in found] == want.commits
        assert result.forwards == len(want.commits)
        for step, best in zip(found, want.best, strict=True):
            assert step.causal == (step.window[0] == step.stop)
            assert step.window.tolist() == list(best)
            got = step.reductions["l1"][0]
            assert np.abs(got - np.asarray(list(best.values()))).max() <= ERROR * largest


@pytest.mark.parametrize("sampler", ["nemotron", "low-confidence", "sdar-sequential", "threshold"])
@pytest.mark.parametrize("chunk", [3, 512])
def test_a_cache_changes_nothing(
    model: Model, sampler: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a batch with padding and blanks in the prompts, whatever is fed together."""
    monkeypatch.setattr(forward, "CHUNK", chunk)
    prompts = [[3, 5, MASK, 9, 2, MASK, 8, 4, 4, 6], [1, MASK], [30, 31, 32, 33, 34]]
    found = {}
    for form, (session, cache) in sessions(model).items():
        chosen = settings(sampler=sampler, steps=6, cache=cache)
        steps, canvas, result = steps_of(model, session, prompts, chosen)
        found[form] = canvas, result.forwards, [step.commits for step in steps]
    assert all(one == found["float"] for one in found.values())
    assert not any(MASK in row for row in found["float"][0])


def test_shares_of_a_block_are_those_of_what_its_seed_leaves(model: Model) -> None:
    for sampler, in_order in (("low-confidence", False), ("leftmost", True)):
        chosen = settings(sampler=sampler, steps=6)  # two for a block: ceil(3 / 2), then the rest
        steps, _, _ = steps_of(model, model.session, [PROMPTS[0]], chosen)
        assert [len(step.commits) for step in steps] == [1, 2, 1] * 3
        places = [commit[1] for step in steps for commit in step.commits]
        assert (places == sorted(places)) or not in_order


def test_a_row_does_not_see_its_neighbours(model: Model) -> None:
    session, cache = sessions(model)["graph cached"]
    chosen = settings(cache=cache)
    together = steps_of(model, session, PROMPTS, chosen)[1]
    assert together == [steps_of(model, session, [p], chosen)[1][0] for p in PROMPTS]


def test_guidance_feeds_both_rows_causally(model: Model) -> None:
    graph = model.lowered.session(GraphKind(guided=True, cached=True))
    forms: list[tuple[Session, str]] = [(model.session, "none"), (model.session, "exact")]
    guided = [
        steps_of(model, session, PROMPTS, settings(cfg_scale=0.7, cache=cache))[1]
        for session, cache in [*forms, (graph, "exact")]
    ]
    assert guided[0] == guided[1] == guided[2]
    assert guided[0] != steps_of(model, model.session, PROMPTS, settings())[1]


def test_blocks_are_counted_from_the_end_of_the_prompt(model: Model) -> None:
    facts = model.lowered.bundle.model
    canvas, length, key_mask = make_canvas([[1, 2, 3, 4, 5], [6]], 6, facts)
    assert canvas.shape == (2, 5 + 2 * BLOCK)
    task = make_task(facts, settings(gen_length=6), canvas, length, key_mask)
    starts = [block.members.argmax(1).tolist() for block in task.blocks()]
    assert starts == [[5, 5], [5 + BLOCK] * 2]


def test_a_seed_needs_a_shift_or_a_causal_pass(model: Model) -> None:
    facts = model.lowered.bundle.model
    other = type(facts)(**{**vars(facts), "commit": "block"})
    with pytest.raises(RuntimeUserError, match="by a logits shift or by a causal pass"):
        make_task(other, settings(), *make_canvas([[1]], 12, other))


# Numbers of quantized models


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("w8a8-rtn", QuantOptions(q_bits=8, k_bits=8, v_bits=8, p_bits=8)),
        ("w4a16-rtn", QuantOptions()),
        ("fp16", QuantOptions()),
        ("fp32", QuantOptions(kv_bits=8)),
    ],
    ids=["operands", "weights", "halves", "kept"],
)
def test_other_numbers_decode_as_their_simulation(
    recipe: str, options: QuantOptions, model: Model, tmp_path: Path
) -> None:
    """A cache changes nothing either, unless it is what is rounded."""
    compute: Storage = "fp16" if recipe == "fp16" else "fp32"
    lowered = lower(model.lowered.checkpoint, recipe, tmp_path, options, compute=compute)
    twin = simulated(lowered.checkpoint, lowered.quantized, lowered.recipe)
    other = Model(model.plain, FloatSession(twin, VOCAB), lowered)
    found = {
        form: steps_of(other, session, PROMPTS, settings(cache=cache))[1]
        for form, (session, cache) in sessions(other).items()
    }
    assert found["float"] == found["graph"]
    assert found["float cached"] == found["graph cached"]
    assert (found["float"] == found["float cached"]) or options.kv_bits < 16


# Gate and calibration


def test_teacher_forcing_feeds_what_the_loop_fed(model: Model, tmp_path: Path) -> None:
    """The float model agrees with itself at every commit, seeds included."""
    facts = model.lowered.bundle.model
    reference = record(model.session, facts, settings(cache="exact"), PROMPTS, Progress())
    assert reference.causal is not None
    assert reference.causal.sum() == 3
    reference.save(tmp_path / "gate.safetensors")
    reference = Reference.load(tmp_path / "gate.safetensors")
    for session in (model.session, sessions(model)["graph cached"][0]):
        agrees, regret, kl = compare(session, facts, reference)
        assert agrees.all()
        assert np.abs(regret).max() == 0
        assert kl.max() <= 1e-6


def test_likelihoods_of_masked_answers_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "model")
    subject = open_subject(str(tmp_path / "model"), Hardware(), Progress())
    with pytest.raises(UserError, match="one block at a time"):
        opens_logits(subject)


@pytest.mark.parametrize("recipe", ["w4a16", "w8a8"])
def test_a_bundle_is_built_and_passes_its_gate(recipe: str, tmp_path: Path) -> None:
    write(tmp_path / "model", head=1.0)
    built = dqexport(
        "build", tmp_path / "model", "--recipe", recipe, "--target", "cpu", "-o", tmp_path / "out",
        "--gen-length", "8", "--max-canvas", "40", "--gate-prompts", "2", "--calib-prompts", "4",
        "--samples", "16", "--json",
    )  # fmt: skip
    assert built.code == 0, built.err
    manifest = json.loads(built.out)
    assert manifest["gate"]["passed"]
    assert manifest["model"]["commit"] == "causal"
    assert manifest["decode"]["cache"] == "exact"
    argv = ("run", tmp_path / "out", "--ids", "1,2,3", "--json", "--no-early-stop")
    answers = [dqexport(*argv, "--cache", cache) for cache in ("exact", "none")]
    first, second = (json.loads(answer.out)["new"] for answer in answers)
    assert first == second
    assert len(first) == 8
