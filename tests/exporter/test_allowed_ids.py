"""--allow-ids and --forbid-ids on real graphs: as if the head had no other rows."""

import json
from pathlib import Path

import numpy as np
import pytest

from exporter.graph_kind import GraphKind
from exporter.runtime.allowed import allowed_ids
from exporter.runtime.command import main
from exporter.runtime.engine import Engine
from exporter.runtime.errors import UserError
from exporter.runtime.open_model import Hardware
from exporter.runtime.session import Bools
from exporter.runtime.settings import Settings
from exporter.runtime.stream import unseen
from tests.fixtures_lower import GOLDEN, KINDS, TWO_FP32, Lowered, check_reductions, golden, lower
from tests.numpy_model import load_numpy_model, reduce

VOCAB = 208


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    return lower(golden("llada"), "fp32", tmp_path_factory.mktemp("llada"))


def some(seed: int) -> Bools:
    """A twentieth of the vocabulary."""
    return np.random.default_rng(seed).random(VOCAB) < 0.05


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.guided], ids=lambda kind: kind.name)
def test_reductions_are_those_of_the_allowed_logits(lowered: Lowered, kind: GraphKind) -> None:
    """All but the tail of the best K, which holds suppressed ids once the allowed run out."""
    rng, allowed = np.random.default_rng(0), some(1)
    ids, keep, window = rng.integers(0, 200, (2, 16)), np.ones((2, 16), bool), np.arange(16)
    logits = load_numpy_model(GOLDEN / "llada").logits(ids, keep)
    logits[..., ~allowed] -= 1e4
    want = reduce(logits, np.where(allowed, 0.0, -1e4), 1.0, ids)
    session = lowered.session(kind)
    session.restrict(allowed)
    names = [n for n in kind.outputs if n not in ("topk_ids", "topk_logits", "l_held")]
    got = session.forward(
        ids, keep, window, np.zeros((2, 1), np.float32), None, None, frozenset(names)
    )
    got["l_held"] = want["l_held"]  # of suppressed ids it is only rounded more
    if kind.sample:
        got["topk_logits"] = want["topk_logits"]
    check_reductions(got, want, TWO_FP32, VOCAB)


@pytest.mark.parametrize("sampler", ["threshold", "entropy", "wino"])
def test_an_answer_has_no_other_tokens(lowered: Lowered, sampler: str) -> None:
    allowed = some(2)
    for each in (allowed, ~allowed):
        each[200] = False
        engine = Engine(lowered.bundle, None, Hardware(threads=1), allowed=each)
        settings = Settings(sampler=sampler, gen_length=16, block_length=8, early_stop=False)
        run = engine.decode([[1, 2, 3]], settings, unseen)
        assert each[run.answers[0].new].all()


@pytest.mark.parametrize("option", ["--allow-ids", "--forbid-ids"])
def test_the_command_of_a_bundle_takes_a_file(
    quick_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    file = tmp_path / "ids"
    file.write_text("5 7 9 11")
    assert main(quick_bundle, ["--ids", "1,2", "--json", option, str(file)]) == 0
    new = json.loads(capsys.readouterr().out)["new"]
    inside = {token in (5, 7, 9, 11) for token in new}
    assert inside == {option == "--allow-ids"}


def test_files_are_sets_of_ids(lowered: Lowered, tmp_path: Path) -> None:
    allow, forbid = tmp_path / "allow", tmp_path / "forbid"
    allow.write_text("[1, 2, 3,\n200]\n")
    forbid.write_text("2 4\n5,6")
    model = lowered.bundle.model

    def chosen(allow: Path | None, forbid: Path | None) -> list[int]:
        found = allowed_ids(allow, forbid, model)
        assert found is not None
        return np.flatnonzero(found).tolist()

    assert allowed_ids(None, None, model) is None
    assert chosen(allow, None) == [1, 2, 3]
    assert chosen(allow, forbid) == [1, 3]
    others = set(range(model.vocab_size)) - {2, 4, 5, 6, 200}
    assert set(chosen(None, forbid)) == others


@pytest.mark.parametrize(
    ("text", "says"), [("1, x", "cannot be read"), ("999", "names the id 999"), ("", "no token")]
)
def test_a_file_that_makes_no_sense_is_refused(
    lowered: Lowered, tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "ids"
    file.write_text(text)
    with pytest.raises(UserError, match=says) as error:
        allowed_ids(file, None, lowered.bundle.model)
    assert error.value.hint
