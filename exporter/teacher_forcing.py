"""What a bundle predicts at every state of the float trajectories, in a process without torch.

    python -m exporter.teacher_forcing BUNDLE PROVIDER

prints `agrees`, `regret` and `kl` of all committed positions as JSON; gate.py runs it.
"""

import json
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from exporter.agreement import divergence, give_up, log_probabilities
from exporter.runtime.bundle import ModelFacts, read_bundle
from exporter.runtime.session import Bools, Floats, Ints, Session
from exporter.runtime.session_ort import open_session
from exporter.trajectory import TOP, Reference

TOKENS_AT_ONCE = 1024  # of the canvases that are fed together
LOGITS_AT_ONCE = 1 << 21  # of one call of the bundle; about ten arrays of this size are alive


def predict(bundle: Path, provider: str, operators: bool = True) -> tuple[Bools, Floats, Floats]:
    """Agreement, regret and KL divergence, (N,) each, of a bundle with what it carries."""
    reference = Reference.load(bundle / "gate.safetensors")
    opened = read_bundle(bundle)
    cached = opened.decode.cache != "none"  # then these are the graphs that it decodes with
    session = open_session(
        opened, guided=False, wanted=TOP, provider=provider, cached=cached, operators=operators
    )
    return compare(session, opened.model, reference)


def compare(
    session: Session, model: ModelFacts, reference: Reference
) -> tuple[Bools, Floats, Floats]:
    """Agreement, regret and KL divergence, (N,) each, at the committed positions."""
    bias = np.zeros((2, len(model.special_ids)), np.float32)
    agrees = np.zeros(len(reference.commits), np.bool_)
    regret, kl = np.zeros(len(agrees)), np.zeros(len(agrees))
    for which in _together(reference, model.vocab_size):
        call = reference.commits[which[0], 0]
        rows, positions = reference.commits[which, 1], reference.commits[which, 2]
        stop, causal = reference.seen(int(call))
        fed, row_at = np.unique(rows, return_inverse=True)
        window, column = np.unique(positions, return_inverse=True)
        found = session.forward(
            reference.canvases[call][fed, :stop],
            reference.key_mask[fed, :stop].astype(np.bool_),
            window,
            bias,
            None,
            None,
            TOP,
            causal=causal,
        )
        at = (row_at, column)
        agrees[which] = found["id1"][at] == reference.commits[which, 3]
        regret[which] = give_up(
            reference.top_ids[which], reference.top_logp[which],
            reference.commits[which, 3], found["id1"][at],
        )  # fmt: skip
        logps, ids = log_probabilities(found)[at], found["topk_ids"][at]
        for n, mine, logp in zip(which, ids, logps, strict=True):
            kl[n] = divergence(reference.top_ids[n], reference.top_logp[n], mine, logp)
    return agrees, regret, kl


def _together(reference: Reference, vocab: int) -> Iterator[Ints]:
    """Indices of the commits of one call, for a few rows at a time."""
    calls, rows = reference.commits[:, 0], reference.commits[:, 1]
    length = reference.answer.shape[1]
    for call in np.unique(calls):
        window = len(np.unique(reference.commits[calls == call, 2]))
        part = rows // rows_at_once(length, window, vocab)
        for number in np.unique(part[calls == call]):
            yield np.flatnonzero((calls == call) & (part == number))


def rows_at_once(length: int, window: int, vocab: int) -> int:
    """Prompts that are decoded together: memory must not grow with their number.

    `length` of the canvas, `window` positions that are predicted together, `vocab` ids.
    """
    return max(1, min(TOKENS_AT_ONCE // length, LOGITS_AT_ONCE // (window * vocab)))


def main() -> None:
    """Entry point of the process: `BUNDLE --provider NAME [--no-operators]`."""
    parser = ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--provider", required=True)
    parser.add_argument("--no-operators", dest="operators", action="store_false")
    args = parser.parse_args()
    agrees, regret, kl = predict(args.bundle, args.provider, args.operators)
    found = {"agrees": agrees.tolist(), "regret": regret.tolist(), "kl": kl.tolist()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
