"""What is found of NVIDIA's hardware and software is said, and what to do where it lacks."""

from dataclasses import replace

from exporter import doctor_gpu
from exporter.machine import Gpu
from exporter.machine_gpu import Installed
from exporter.machine_jetson import Jetson

BOARD = Jetson("36.4.3", "6.2", "NVIDIA Jetson AGX Orin Developer Kit", "MAXN", True)


def test_gpus() -> None:
    cards = [Gpu("H100", "570.1", 81920, 90), Gpu("Orin", "540.4.0", None, 87)]
    finding = doctor_gpu.gpu(cards)
    assert finding.ok
    assert finding.seen == (
        "H100, SM 90, driver 570.1, 80.0 GiB; Orin, SM 87, driver 540.4.0, shared memory"
    )
    assert not doctor_gpu.gpu([]).ok


def test_boards() -> None:
    finding = doctor_gpu.jetson(BOARD)
    assert finding.ok
    assert finding.seen == "NVIDIA Jetson AGX Orin Developer Kit, L4T 36.4.3, JetPack 6.2"
    unknown = doctor_gpu.jetson(replace(BOARD, jetpack=None, board=None))
    assert (unknown.ok, unknown.seen) == (False, "unknown board, L4T 36.4.3, JetPack unknown")
    assert doctor_gpu.jetson(None).seen == "not a Jetson"


def test_only_the_fastest_mode_with_locked_clocks_is_fit_for_timings() -> None:
    assert doctor_gpu.power(BOARD).ok
    assert doctor_gpu.power(replace(BOARD, power_mode="MAXN_SUPER")).ok
    slow = doctor_gpu.power(replace(BOARD, power_mode="15W"))
    assert (slow.ok, slow.seen) == (False, "15W, clocks locked")
    assert not doctor_gpu.power(replace(BOARD, clocks_locked=False)).ok
    dark = doctor_gpu.power(replace(BOARD, power_mode=None, clocks_locked=None))
    assert (dark.ok, dark.seen) == (False, "unknown mode, clocks unknown")
    assert "jetson_clocks" in slow.hint and "nvpmodel -m" in slow.hint


def test_software() -> None:
    found = Installed("10.3.0", "libnvinfer.so.10")
    assert doctor_gpu.tensorrt_library(found, True).seen == "10.3.0, libnvinfer.so.10"
    nameless = Installed(None, "/opt/include")
    assert doctor_gpu.tensorrt_headers(nameless, False).seen == "version unknown, /opt/include"
    assert "apt-get" in doctor_gpu.tensorrt_headers(None, True).hint
    assert "pip install" in doctor_gpu.tensorrt_headers(None, False).hint
    assert not doctor_gpu.nvcc(None).ok


def test_power_is_a_question_for_boards_alone() -> None:
    names = {finding.name for finding in doctor_gpu.findings([], None)}
    assert {f.name for f in doctor_gpu.findings([], BOARD)} - names == {"power mode"}
