"""What can run a bundle: its engines, ONNX Runtime's providers; its checkpoint: torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from exporter.evaluation.subject import Hardware as Devices
from exporter.evaluation.subject import open_subject
from exporter.manifest import Manifest
from exporter.progress import Progress
from exporter.runtime.bundle import Bundle
from exporter.runtime.open_model import Hardware, Model, open_model
from exporter.runtime.session import Session

PROVIDERS = ("cuda", "cpu")  # of ONNX Runtime, that a bundle is compared on
TORCH = "torch"

# guided?, reductions that will be asked for, with a cache?
Open = Callable[[bool, frozenset[str], bool], Session]


@dataclass(frozen=True)
class Contestant:
    """One way to run the model. `open` raises UserError with the reason where it cannot here."""

    name: str
    open: Open
    own: bool  # what the bundle's target runs it with


def own_provider(manifest: Manifest) -> str:
    """What the target of a bundle runs it with, as --provider takes it."""
    if manifest.engines is not None:
        return manifest.engines.runtime
    return manifest.runtime.providers[0].lower().removesuffix("executionprovider")


def contestants(
    bundle: Bundle, manifest: Manifest, hardware: Hardware, checkpoint: str | None, device: str
) -> list[Contestant]:
    """The target's own first; `checkpoint` with its float weights in torch on `device` last.

    A provider in `hardware` stands alone, with torch where it is asked for.
    """
    own = own_provider(manifest)
    names = [own, *PROVIDERS] if hardware.provider is None else [hardware.provider]
    found = [
        Contestant(name, _of_bundle(bundle, hardware, name), name == own)
        for name in dict.fromkeys(names)
    ]
    if checkpoint is not None:
        found.append(Contestant(TORCH, _of_checkpoint(checkpoint, device), False))
    return found


def _of_bundle(bundle: Bundle, hardware: Hardware, provider: str) -> Open:
    def opened(guided: bool, wanted: frozenset[str], cached: bool) -> Session:
        there = Hardware(
            provider, hardware.threads, hardware.accuracy_level, hardware.operators,
            hardware.cuda_graphs,
        )  # fmt: skip
        return open_model(bundle, guided, wanted, cached, there)

    return opened


def _of_checkpoint(checkpoint: str, device: str) -> Open:
    def opened(guided: bool, wanted: frozenset[str], cached: bool) -> Session:
        subject = open_subject(checkpoint, Devices(device), Progress())
        return subject.open(guided, wanted, cached)

    return opened


def runs_on(contestant: Contestant, session: Session, device: str) -> str:
    """What a contestant's session really runs on, in a line."""
    if contestant.name == TORCH:
        import torch

        return f"torch {torch.__version__}, fp32 ({device})"
    return str(cast(Model, session).runs_on)
