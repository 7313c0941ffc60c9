"""A stand-in for the module `tensorrt` as a builder, where what it is told is all that counts.

It reads no graph and builds nothing: an engine is the text of its version and profiles. Versions
differ in what they have, as TensorRT's do. What parsers and builders take is tried with TensorRT
for RTX, in tests marked `trt`.
"""

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


class Base:
    """What a Python class of TensorRT's is to a subclass."""


@dataclass
class Config:
    """A builder's settings, as they were made."""

    profiles: list[dict[str, list[list[int]]]] = field(default_factory=list)
    capabilities: list[str] = field(default_factory=list)
    previews: list[str] = field(default_factory=list)
    workspace: int | None = None
    builder_optimization_level: int = 3
    num_compute_capabilities: int = 0
    cache: bytes | None = None
    progress_monitor: Any = None
    stamp: bytes = b""  # of timings that fit

    def add_optimization_profile(self, profile: dict[str, list[list[int]]]) -> None:
        self.profiles.append(profile)

    def set_compute_capability(self, capability: str, index: int) -> None:
        assert index == len(self.capabilities) < self.num_compute_capabilities
        self.capabilities.append(capability)

    def set_preview_feature(self, feature: str, on: bool) -> None:
        self.previews += [feature] * on

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        assert pool == "workspace"
        self.workspace = size

    def create_timing_cache(self, content: bytes) -> bytes | None:
        return None if content == b"damaged" else content or self.stamp

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if not cache.startswith(self.stamp):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache and SimpleNamespace(serialize=lambda: self.cache + b"+")


class Profile(dict[str, list[list[int]]]):
    def set_shape(self, name: str, *shapes: list[int]) -> None:
        self[name] = list(shapes)


def parse_error(text: str, operator: str, name: str) -> Any:
    """What OnnxParser.get_error returns."""
    return SimpleNamespace(
        desc=lambda: text, node_operator=lambda: operator, node_name=lambda: name
    )


@dataclass
class TensorRT:
    """The module: its version, what it refuses, and what was done with it."""

    __version__: str = "10.16.2"
    parse_errors: list[Any] = field(default_factory=list)
    build_error: str | None = None
    loads_libraries: bool = True
    builds: list[str] = field(default_factory=list)  # files that were parsed
    flags: list[int] = field(default_factory=list)  # of networks
    libraries: list[str] = field(default_factory=list)
    configs: list[Config] = field(default_factory=list)

    ILogger = type("ILogger", (Base,), {
        "Severity": SimpleNamespace(ERROR="error", INTERNAL_ERROR="internal", WARNING="warning"),
    })  # fmt: skip
    IProgressMonitor = Base
    LayerType = SimpleNamespace()  # without attention, as before 10.14
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    PreviewFeature = SimpleNamespace(ALIASED_PLUGIN_IO_10_03="aliased")
    ComputeCapability = SimpleNamespace(SM86="SM86", SM89="SM89")

    @property
    def NetworkDefinitionCreationFlag(self) -> Any:
        """Since 11 networks are always strongly typed; one day the flag is gone."""
        old = self.__version__.startswith("10.")
        return SimpleNamespace(STRONGLY_TYPED=1) if old else SimpleNamespace()

    def Builder(self, log: Any) -> Any:
        def create_network(flags: int) -> Any:
            self.flags.append(flags)
            return SimpleNamespace(num_layers=0)

        def create_builder_config() -> Config:
            self.configs.append(Config(stamp=self.__version__.encode()))
            return self.configs[-1]

        def build(network: Any, config: Config) -> bytes | None:
            config.progress_monitor.phase_start("tactics", None, 2)
            assert config.progress_monitor.step_complete("tactics", 0)
            config.progress_monitor.phase_finish("tactics")
            log.log("warning", "of no importance")
            if self.build_error:
                log.log("error", self.build_error)
                return None
            return json.dumps([self.__version__, config.profiles]).encode()

        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=create_builder_config,
            create_optimization_profile=Profile,
            build_serialized_network=build,
        )

    def OnnxParser(self, network: Any, log: Any) -> Any:
        def parse(path: str) -> bool:
            self.builds.append(path)
            return not self.parse_errors

        return SimpleNamespace(
            parse_from_file=parse,
            num_errors=len(self.parse_errors),
            get_error=lambda i: self.parse_errors[i],
        )

    def get_plugin_registry(self) -> Any:
        def load(path: str) -> object:
            self.libraries.append(path)
            return object() if self.loads_libraries else None

        return SimpleNamespace(load_library=load)
