"""The shadow of a block: graph, float model and a plain re-computation agree, and WINO on them."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.checkpoint import open_checkpoint
from exporter.float_session import FloatModel, FloatSession
from exporter.graph_kind import GraphKind, graph_kinds
from exporter.runtime.candidates import wanted
from exporter.runtime.errors import UserError
from exporter.runtime.loop import decode
from exporter.runtime.session import Bools, Ints, Reductions, Session
from exporter.runtime.session_ort import OrtSession, choose_graph
from exporter.runtime.settings import Settings
from exporter.runtime.shadow import rows_for, shadow_of
from exporter.runtime.task import make_canvas, make_task
from exporter.simulate import simulated
from tests.fixtures_lower import (
    CANVAS,
    GOLDEN,
    TWO_FP32,
    Lowered,
    check_reductions,
    golden,
    lower,
    random_checkpoint,
)
from tests.numpy_model import NumpyModel, NumpySession, load_numpy_model

SHADOW, FULL = GraphKind(shadow=True), GraphKind()
LENGTH, VOCAB, MASK = 20, 208, 200
NAMES = frozenset(SHADOW.outputs)
BIAS = np.zeros((2, 1), np.float32)


@dataclass(frozen=True)
class Made:
    """A golden LLaDA in all forms."""

    lowered: Lowered
    graph: OrtSession
    full: OrtSession
    model: FloatSession
    plain: NumpyModel


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    lowered = lower(golden("llada"), "fp32", tmp_path_factory.mktemp("llada"))
    return Made(
        lowered,
        lowered.session(SHADOW),
        lowered.session(FULL),
        FloatSession(FloatModel(lowered.checkpoint), VOCAB),
        load_numpy_model(GOLDEN / "llada"),
    )


def ask(session: Session, ids: Ints, keep: Bools, window: Ints, shadow: Ints | None) -> Reductions:
    return session.forward(ids, keep, window, BIAS, None, None, NAMES, shadow=shadow)


@st.composite
def questions(draw: st.DrawFn) -> tuple[Ints, Bools, Ints]:
    """Left-padded rows, and shadows that differ from row to row."""
    rows, width = draw(st.integers(1, 3)), draw(st.integers(0, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    padding = rng.integers(0, LENGTH // 2, rows)
    shadow = np.full((rows, width), -1)
    for row in range(rows):
        count = rng.integers(0, width + 1)
        shadow[row, :count] = np.sort(rng.permutation(np.arange(padding[row], LENGTH))[:count])
    ids = rng.integers(0, MASK, (rows, LENGTH))  # the oracle does not tell the mask's own logit
    return ids, np.arange(LENGTH) >= padding[:, None], shadow


@settings(deadline=None, max_examples=25)
@given(question=questions())
def test_graph_float_model_and_plain_computation_agree(
    made: Made, question: tuple[Ints, Bools, Ints]
) -> None:
    ids, keep, shadow = question
    window = np.arange(LENGTH + shadow.shape[1])
    real = np.concatenate([keep, shadow >= 0], 1)
    found = [ask(s, ids, keep, window, shadow) for s in (made.graph, made.model)]
    want = ask(NumpySession(made.plain), ids, keep, window, shadow)
    for got in found:
        names = {"id1": "id1", "l1": "l1", "rest": "rest", "l_held": "l_unseen"}
        ours = {name: got[own][real] for name, own in names.items()}
        theirs = {name: want[own][real] for name, own in names.items()} | {"l2": want["l2"][real]}
        check_reductions(ours, theirs, TWO_FP32, VOCAB)


@settings(deadline=None, max_examples=15)
@given(question=questions())
def test_a_shadow_changes_nothing_of_the_canvas(
    made: Made, question: tuple[Ints, Bools, Ints]
) -> None:
    ids, keep, shadow = question
    window = np.arange(LENGTH)
    got = ask(made.graph, ids, keep, window, shadow)
    bare = ask(made.graph, ids, keep, window, None)
    want = made.full.forward(
        ids, keep, window, BIAS, None, None, frozenset({"id1", "l1", "rest", "l_held"})
    )
    slack = np.expm1(2 * TWO_FP32) * want["rest"] + VOCAB * 2.0**-22
    for found in (got, bare):
        assert (np.abs(found["l1"] - want["l1"])[keep] <= TWO_FP32).all()
        assert (np.abs(found["rest"] - want["rest"]) <= slack)[keep].all()


def test_the_longest_canvas_may_be_all_shadow(made: Made) -> None:
    """A token of it is then fed behind the last position that there is."""
    ids = np.random.default_rng(0).integers(0, MASK, (1, CANVAS))
    keep, shadow = np.ones((1, CANVAS), bool), np.arange(CANVAS)[None]
    window = np.arange(CANVAS, 2 * CANVAS)
    got, want = (ask(s, ids, keep, window, shadow) for s in (made.graph, made.model))
    assert (np.abs(got["l1"] - want["l1"]) <= TWO_FP32).all()


@pytest.mark.parametrize("recipe", ["w4a8-rtn", "w4a16-rtn"])
def test_grids_of_attention_are_those_of_the_graph_without(recipe: str, tmp_path: Path) -> None:
    """The canvas is rounded alike; where nothing is rounded but weights, so are the shadow's."""
    lowered = lower(golden("llada"), recipe, tmp_path)
    rng = np.random.default_rng(0)
    ids, keep = rng.integers(0, VOCAB, (2, LENGTH)), np.arange(LENGTH) >= np.asarray([[0], [5]])
    shadow = np.asarray([[9, 10, 11], [12, 13, -1]])
    window = np.arange(LENGTH + 3)
    got = ask(lowered.session(SHADOW), ids, keep, window, shadow)
    want = lowered.session(FULL).forward(
        ids, keep, np.arange(LENGTH), BIAS, None, None, frozenset({"l1"})
    )
    assert (np.abs(got["l1"][:, :LENGTH] - want["l1"])[keep] <= TWO_FP32).all()
    if recipe == "w4a16-rtn":
        twin = simulated(lowered.checkpoint, lowered.quantized, lowered.recipe)
        other = ask(FloatSession(twin, VOCAB), ids, keep, window, shadow)
        real = np.concatenate([keep, shadow >= 0], 1)
        assert (np.abs(got["l_unseen"] - other["l_unseen"])[real] <= 2 * TWO_FP32).all()


def test_the_graph_is_valid_standard_onnx(made: Made) -> None:
    file = made.lowered.graph(SHADOW)
    onnx.checker.check_model(file, full_check=True)
    inputs = onnx.load(file, load_external_data=False).graph.input
    names = ["input_ids", "key_mask", "window", "shadow", "suppress", "special_bias"]
    assert [value.name for value in inputs] == names


def test_models_that_cast_none_have_no_such_graph(tmp_path: Path) -> None:
    assert [kind.name for kind in graph_kinds(False, True)][8:] == ["full-shadow"]
    assert SHADOW.outputs == ["id1", "l1", "rest", "l_unseen"]
    dream = lower(golden("dream"), "fp32", tmp_path)
    assert not dream.graph(SHADOW).exists()
    with pytest.raises(UserError, match="no graph with the outputs"):
        choose_graph(dream.bundle, False, NAMES)


def test_only_wino_gets_the_graph_with_a_shadow(made: Made) -> None:
    for sampler in ("threshold", "p2", "wino"):
        graph = choose_graph(made.lowered.bundle, False, wanted(Settings(sampler=sampler)))
        assert (graph.name == "full-shadow") == (sampler == "wino")


# The rule


def wino(
    model: NumpyModel, prompt: list[int], length: int, options: Settings
) -> tuple[list[int], int]:
    """The published loop on full distributions: the canvas, and how many tokens were put back."""
    mask, size = model.facts.mask_id, options.block_length
    canvas = np.asarray([*prompt, *[mask] * length])
    everything, revoked = np.ones((1, len(canvas)), bool), 0

    def probabilities(logits: np.ndarray) -> np.ndarray:
        logits[:, mask] = -1e4
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        return np.asarray(odds / odds.sum(-1, keepdims=True))

    for lo in range(len(prompt), len(canvas), size):
        block, last = np.arange(lo, lo + size), 30
        while (masks := block[canvas[block] == mask]).size:
            p = probabilities(model.logits(canvas[None], everything)[0])
            under = probabilities(model.shadow_logits(canvas[None], everything, block[None])[0])
            tokens = block[canvas[block] != mask]
            most = min(max(int(len(masks) * 0.7), 5), 20)
            order = sorted(masks, key=lambda i: (-p[i].max(), i))
            taken = [i for i in order if p[i].max() > options.limit("threshold")][:most]
            taken = taken or order[:1]
            unsure = [i for i in tokens if under[i - lo, canvas[i]] < options.keep_threshold]
            unsure.sort(key=lambda i: (under[i - lo, canvas[i]], i))
            for i in taken:
                canvas[i] = p[i].argmax()
            if len(taken) > 1:
                canvas[unsure[: last - 1]] = mask
                revoked += len(unsure[: last - 1])
            last = len(taken)
    return canvas.tolist(), revoked


@pytest.mark.parametrize("seed", range(4))
def test_wino_is_the_published_loop(seed: int, tmp_path: Path) -> None:
    """With random models, whose numbers of the oracle itself decide: no tie falls otherwise."""
    model = load_numpy_model(GOLDEN / "llada")
    rng = np.random.default_rng(seed)
    prompt = rng.integers(3, 150, 5).tolist()
    model.weights["model.transformer.ff_out.weight"] *= rng.uniform(1, 3)
    options = Settings(
        sampler="wino", gen_length=16, block_length=8, threshold=0.2, keep_threshold=0.3,
        early_stop=False,
    )  # fmt: skip
    want, revoked = wino(model, prompt, 16, options)
    canvas, length, keep = make_canvas([prompt, prompt[2:]], 16, model.facts)
    steps = list(decode(NumpySession(model), model.facts, options, canvas, length, keep))
    assert canvas[0].tolist() == want
    assert sum(row == 0 for step in steps for row, *_ in step.edits) == revoked
    assert seed or revoked


def test_graph_and_float_model_decode_alike(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "a", "llada", 32, 48, 64, 2, 4)
    lowered = lower(open_checkpoint(folder), "fp32", tmp_path / "b")
    facts, answers = lowered.bundle.model, []
    options = Settings(
        sampler="wino", gen_length=16, block_length=8, threshold=0.1, keep_threshold=0.2,
        early_stop=False,
    )  # fmt: skip
    for session in (
        lowered.session(SHADOW),
        FloatSession(FloatModel(lowered.checkpoint), facts.vocab_size),
        NumpySession(load_numpy_model(folder)),
    ):
        canvas, length, keep = make_canvas([[1, 2, 3], [facts.mask_id, 7]], 16, facts)
        list(decode(session, facts, options, canvas, length, keep))
        answers.append(canvas.tolist())
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"shift": True}, "a logits shift"),
        ({"attention": "block-causal", "block_length": 4}, "block-causal attention"),
    ],
)
def test_other_models_are_refused(made: Made, others: dict[str, object], says: str) -> None:
    facts = replace(made.lowered.bundle.model, **others)  # type: ignore[arg-type]
    options = Settings(sampler="wino", gen_length=8, block_length=4)
    with pytest.raises(UserError, match=says) as error:
        make_task(facts, options, *make_canvas([[1]], 8, facts))
    assert error.value.hint


def test_a_cache_is_refused(made: Made) -> None:
    options = Settings(sampler="wino", gen_length=8, block_length=4, cache="prefix")
    with pytest.raises(UserError, match="it looks at all tokens"):
        make_task(made.lowered.bundle.model, options, *make_canvas([[1]], 8, made.plain.facts))


# Places


def test_a_shadow_stands_for_the_members_of_each_row() -> None:
    members = np.asarray([[0, 1, 1, 0, 1], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
    assert shadow_of(members).tolist() == [[1, 2, 4], [3, -1, -1], [-1, -1, -1]]
    masked = np.asarray([[0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], bool)
    rows = rows_for(members, masked, np.asarray([1, 2, 4]))
    assert rows.tolist() == [[5, 2, 7], [1, 2, 4], [1, 2, 4]]
