"""Facts of boards, read from what their systems say."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import targets
from exporter import machine_jetson
from exporter.machine import Gpu
from exporter.machine_jetson import (
    CHIPS,
    JETPACK,
    Jetson,
    named_power_mode,
    parse_chip,
    parse_clocks,
    parse_jetpack,
    parse_l4t,
    parse_power_mode,
)

ORIN = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
THOR = "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64\n"
CONF = """\
< PARAM TYPE=FILE NAME=CPU_ONLINE >
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 >
"""
CLOCKS = """\
SOC family:tegra234  Machine:NVIDIA Jetson AGX Orin Developer Kit
cpu0: Online=1 Governor=schedutil MinFreq=729600 MaxFreq=2201600 CurrentFreq=2201600
GPU MinFreq=306000000 MaxFreq=1300500000 CurrentFreq=306000000
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=2133000000 FreqOverride=0
NV Power Mode: MAXN
"""


def test_releases() -> None:
    assert parse_l4t(ORIN) == "36.4.3" and JETPACK["36.4.3"] == "6.2"
    assert parse_l4t(THOR) == "38.2.0" and JETPACK["38.2.0"] == "7.0"
    assert parse_jetpack("6.2.1+b38") == "6.2.1"
    assert parse_jetpack("") is None


def test_releases_rise_together() -> None:
    """A later L4T is never an earlier JetPack, and targets are for JetPacks that are known."""
    pairs = [(_numbers(l4t), _numbers(jetpack)) for l4t, jetpack in JETPACK.items()]
    in_order = sorted(pairs)
    assert [jetpack for _, jetpack in in_order] == sorted(jetpack for _, jetpack in pairs)
    titles = " ".join(targets.load(name).title for name in targets.names())
    for version in ("6.2", "7.0", "7.1", "7.2"):
        assert version in titles and version in JETPACK.values()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def test_power_modes() -> None:
    assert parse_power_mode("NV Power Mode: MAXN\n0\n") == "MAXN"
    assert parse_power_mode("NVPM WARN: fan mode is not set!\nNV Power Mode: 15W\n2\n") == "15W"
    assert parse_power_mode("") is None
    assert named_power_mode("pmode:0002 fmode:quiet", CONF) == "MAXN_SUPER"
    assert named_power_mode("pmode:0000\n", CONF) == "15W"
    assert named_power_mode("pmode:0007", CONF) is None
    assert named_power_mode("", CONF) is None


def test_clocks() -> None:
    assert parse_clocks(CLOCKS) is False
    assert parse_clocks(CLOCKS.replace("306000000", "1300500000")) is True
    assert parse_clocks("cpu0: Online=1 MinFreq=1 MaxFreq=1\n") is None


def test_chips_are_those_that_targets_name() -> None:
    tree = "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0"
    assert parse_chip(tree) == Gpu("Orin", "of the board", None, 87)
    assert parse_chip("nvidia,p3971\0nvidia,tegra264\0") == Gpu("Thor", "of the board", None, 110)
    assert parse_chip("nvidia,tegra210\0") is None
    assert parse_chip("") is None
    boards = {targets.load(name).sm for name in targets.names() if targets.load(name).power_mode}
    assert boards == {(sm,) for _, sm in CHIPS.values()}


@given(text=st.text())
def test_any_text_is_survived(text: str) -> None:
    parse_l4t(text)
    parse_power_mode(f"NV Power Mode: {text}")
    named_power_mode(f"pmode:{text}", CONF)
    named_power_mode("pmode:0001", text)
    parse_clocks(f"GPU MinFreq={text}")
    parse_chip(text)
    assert (parse_jetpack(text) or "") in text


def test_a_whole_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user who is not root sees it: jetson_clocks says nothing."""
    files = {
        "/etc/nv_tegra_release": ORIN,
        "/proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "/var/lib/nvpmodel/status": "pmode:0001",
        "/etc/nvpmodel.conf": CONF,
    }
    monkeypatch.setattr(machine_jetson, "read_text", lambda path: files.get(str(path), ""))
    monkeypatch.setattr(machine_jetson, "output_of", lambda command: "")
    monkeypatch.setattr(machine_jetson, "DEVFREQ", tmp_path)
    board = "NVIDIA Jetson Orin Nano Developer Kit"
    assert machine_jetson.jetson() == Jetson("36.4.3", "6.2", board, "25W", None)
    files["/etc/nv_tegra_release"] = ORIN.replace("4.3", "4.9")
    unknown = machine_jetson.jetson()
    assert unknown is not None and unknown.jetpack is None


def test_what_is_no_jetson(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_jetson, "read_text", lambda path: "")
    assert machine_jetson.jetson() is None and machine_jetson.own_gpu() is None


def test_clocks_of_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "17000000.gpu"
    folder.mkdir()
    monkeypatch.setattr(machine_jetson, "DEVFREQ", tmp_path)
    assert machine_jetson.clocks_locked() is None
    (folder / "min_freq").write_text("306000000\n")
    (folder / "max_freq").write_text("1300500000\n")
    assert machine_jetson.clocks_locked() is False
    (folder / "min_freq").write_text("1300500000\n")
    assert machine_jetson.clocks_locked() is True
