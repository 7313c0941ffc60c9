"""Chooses what decodes: an engine of the bundle where one fits here, else ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .bundle import Bundle
from .errors import UserError
from .open_engine import MODULES, open_engine
from .runs_on import RunsOn
from .session import Bools, Session
from .session_ort import fitting_graphs, open_session


class Model(Session, Protocol):
    """A session that says what it runs on, and can be told what not to predict."""

    @property
    def runs_on(self) -> RunsOn:
        """Runtime, version, provider and file."""
        ...

    def restrict(self, allowed: Bools) -> None:
        """From now on predict only ids that are `allowed` [vocabulary]."""
        ...


@dataclass(frozen=True)
class Hardware:
    """Where it is to run; None leaves it to the bundle and to what is here."""

    provider: str | None = None  # tensorrt, tensorrt-rtx, or one of ONNX Runtime's: cuda, cpu, …
    threads: int | None = None  # of the CPU, as the two below for ONNX Runtime
    accuracy_level: int | None = None
    operators: bool = True  # of our own, where the bundle has some
    cuda_graphs: bool | None = None  # record calls that repeat; None: those of engines


def open_model(
    bundle: Bundle,
    guided: bool,
    wanted: frozenset[str],
    cached: bool,
    hardware: Hardware,
    rows: int = 1,
    allowed: Bools | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Model:
    """Load what can answer `wanted` for `rows` sequences at once, `allowed` ids alone.

    Where the bundle has engines and none runs here, `say` gets the reason, and ONNX Runtime runs
    the graph; with a provider that is asked for, that is a UserError.
    """
    graphs = fitting_graphs(bundle, guided, wanted, cached)
    asked = hardware.provider
    if asked in MODULES or (asked is None and bundle.engines is not None):
        try:
            if asked is not None and bundle.engines not in (None, asked):
                raise UserError(
                    f"the engines of this bundle are for {bundle.engines}, not {asked}",
                    hint=f"use --provider {bundle.engines}",
                )
            if allowed is not None:
                raise UserError(
                    "engines predict every token of the vocabulary",
                    hint="drop --provider, --allow-ids or --forbid-ids",
                )
            return open_engine(bundle, graphs, rows, hardware.cuda_graphs is not False)
        except UserError as error:
            if asked is not None:
                raise UserError(f"no engine runs here: {error}", error.hint) from error
            say(f"no engine runs here ({error}); ONNX Runtime runs the graph")
    session = open_session(
        bundle, guided, wanted, asked, hardware.threads, hardware.accuracy_level, cached,
        hardware.operators, hardware.cuda_graphs is True,
    )  # fmt: skip
    if allowed is not None:
        session.restrict(allowed)
    return session
