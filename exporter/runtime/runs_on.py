"""What a session really runs on, for those who read figures later."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class RunsOn:
    """A graph or an engine in a runtime; `str` gives it in a line."""

    provider: str  # as --provider takes it: tensorrt, tensorrt-rtx, cuda, cpu, …
    runtime: str  # onnxruntime, tensorrt or tensorrt-rtx
    version: str  # of the runtime
    file: str  # of the bundle

    def __str__(self) -> str:
        where = f" ({self.provider})" if self.provider != self.runtime else ""
        return f"{self.runtime} {self.version}{where}, {self.file}"

    def line(self) -> str:
        """The same as a line of `statistics.Statistics.lines`."""
        return f"runs on          {self}"

    def as_json(self) -> dict[str, str]:
        """All of it by name."""
        return asdict(self)
