"""What a target lacks is told on a host, on its board, and on a machine of another kind."""

from dataclasses import replace

import pytest

import targets
from exporter.doctor_target import Here, serves, target, to_build, to_build_engines, to_run
from exporter.machine import Gpu

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
HOPPER = Gpu("H100", "570.1", 81559, 90)
TURING = Gpu("T4", "570.1", 15360, 75)
ORIN = Gpu("Orin (nvgpu)", "540.4.0", None, 87)
HOST = Here((CPU,), (), frozenset(), None, nvcc=False, headers=False, compiler=True, jetson=False)
BOARD = Here(
    (CPU,), (ORIN,), frozenset({"tensorrt", "cuda"}), "10.16.2", nvcc=True, headers=True,
    compiler=True, jetson=True,
)  # fmt: skip
EVERY = [targets.load(name) for name in targets.names()]
ON_DEVICE = [one for one in EVERY if one.engine_built == "on-device"]


@pytest.mark.parametrize(
    ("name", "providers", "graphics", "obstacle"),
    [
        ("cpu", [CPU], [], ""),
        ("cpu", [], [], "no CPUExecutionProvider"),
        ("cuda", [CUDA, CPU], [HOPPER], ""),
        ("cuda", [CUDA, CPU], [TURING, HOPPER], ""),
        ("cuda", [CPU], [HOPPER], "no CUDAExecutionProvider"),
        ("cuda", [CUDA, CPU], [], "here is no GPU"),
        ("cuda", [CUDA, CPU], [TURING], "here is SM 75"),
    ],
)
def test_what_runs_where(
    name: str, providers: list[str], graphics: list[Gpu], obstacle: str
) -> None:
    here = replace(HOST, providers=tuple(providers), gpus=tuple(graphics), nvcc=True)
    found = to_run(targets.load(name), here)
    assert len(found) == bool(obstacle)
    assert all(obstacle in lack.what for lack in found)


@pytest.mark.parametrize("one", EVERY, ids=[one.name for one in EVERY])
def test_every_lack_comes_with_what_to_do(one: targets.Target) -> None:
    bare = replace(HOST, providers=(), compiler=False)
    with_gpu = replace(bare, gpus=tuple(Gpu("?", "1", 1, sm) for sm in one.sm or ()))
    for here in (bare, with_gpu, HOST, BOARD):
        lacks = [*to_build(one, here), *to_build_engines(one, here), *to_run(one, here)]
        assert all(lack.what and lack.hint for lack in lacks)
        assert target(one, here).ok == (not lacks)


@pytest.mark.parametrize("one", ON_DEVICE, ids=[one.name for one in ON_DEVICE])
def test_bundles_for_devices_are_built_anywhere(one: targets.Target) -> None:
    assert to_build(one, HOST) == []
    finding = target(one, HOST)
    assert finding.seen.startswith("can build bundles; cannot build their engines and run them")
    assert "build_engine.py" in finding.hint
    # Nothing that could be installed helps where the GPU is another one.
    assert [lack.what for lack in to_build_engines(one, HOST)] == [
        f"it needs SM {'/'.join(map(str, one.sm or ()))}, here is no GPU"
    ]


def test_a_board_that_has_it_all() -> None:
    finding = target(targets.load("jetson-orin"), BOARD)
    assert finding.ok and not finding.hint
    assert finding.seen == "can build bundles; can build their engines and run them here"


def test_a_board_with_another_jetpack_is_led_to_other_targets() -> None:
    """JetPack 6.2 has TensorRT 10.3, which is fine for the target that is made for it."""
    older = replace(BOARD, tensorrt="10.3.0")
    assert target(targets.load("jetson-orin-jp62"), older).ok
    finding = target(targets.load("jetson-orin"), older)
    assert "it needs TensorRT 10.16.2 or later 10.x, here is 10.3.0" in finding.seen
    assert "dqexport targets" in finding.hint


def test_a_bare_board_is_told_its_own_commands() -> None:
    bare = replace(BOARD, modules=frozenset(), tensorrt=None, nvcc=False, headers=False)
    hint = target(targets.load("jetson-orin-jp62"), bare).hint
    for part in ("python3-libnvinfer", "cuda-toolkit-12-6", "libnvinfer-headers-dev",
                 'pip install "cuda-python==12.*"'):  # fmt: skip
        assert part in hint
    assert "cuda-toolkit-13-2" in target(targets.load("jetson-orin"), bare).hint


def test_a_desktop_is_told_the_packages_of_the_versions_that_it_needs() -> None:
    desktop = replace(HOST, gpus=(HOPPER,))
    lacks = to_build_engines(targets.load("tensorrt"), desktop)
    assert lacks[0].hint == 'pip install "tensorrt-cu13>=11.0,<12"'
    assert [bool(lack.without) for lack in lacks] == [False, True, True]


def test_plugins_are_no_condition_for_a_bundle_without_them() -> None:
    rtx = targets.load("rtx-40")
    builder = replace(HOST, modules=frozenset({"tensorrt_rtx_bindings"}))
    assert all(lack.without for lack in to_build(rtx, builder))
    finding = target(rtx, builder)
    assert finding.seen.startswith("can build bundles, but none with plugins: TensorRT's headers")
    assert target(rtx, HOST).seen.startswith("cannot build bundles: the module `tensorrt_rtx_b")
    whole = replace(builder, headers=True)
    assert to_build(rtx, whole) == []
    assert target(rtx, whole).seen.startswith("can build bundles; cannot run them here")


def test_operators_of_our_own_are_no_condition_on_a_gpu() -> None:
    cuda = targets.load("cuda")
    here = replace(HOST, providers=(CUDA, CPU), gpus=(HOPPER,))
    finding = target(cuda, here)
    assert "can run them here, but standard operators in the place of ours" in finding.seen
    assert "nvcc" in finding.seen and "nvidia-cuda-nvcc" in finding.hint
    assert target(cuda, replace(here, nvcc=True)).ok


def test_versions() -> None:
    assert serves("10.16.2", "10.16.2") and serves("10.16.2.10", "10.16.2")
    assert serves("11.4.0.106", "11.0") and serves("10.3.0", "10.3")
    assert not serves("10.3.0", "10.16.2") and not serves("11.4.0", "10.16.2")
    assert serves("version unknown", "10.3")  # it may be right
