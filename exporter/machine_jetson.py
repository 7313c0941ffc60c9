"""Raw facts of a Jetson: its release, board, GPU, power mode, clocks. Nothing is judged here."""

import re
from dataclasses import dataclass
from pathlib import Path

from exporter.machine import Gpu, output_of, read_text
from exporter.machine_gpu import debian_version

# Jetson Linux (L4T) → JetPack, of NVIDIA's archive. What is not here is not guessed.
JETPACK = {
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.5.0": "6.2.2",
    "36.5.2": "6.2.3",
    "38.2.0": "7.0",
    "38.2.1": "7.0",
    "38.4.0": "7.1",
    "39.2.0": "7.2",
    "39.2.1": "7.2.1",
}
CHIPS = {"tegra234": ("Orin", 87), "tegra264": ("Thor", 110)}  # in the device tree: name, SM
DEVFREQ = Path("/sys/class/devfreq")  # where the kernel has the frequencies of devices


@dataclass(frozen=True)
class Jetson:
    """What a Jetson tells of itself; None where it does not."""

    l4t: str
    jetpack: str | None
    board: str | None
    power_mode: str | None
    clocks_locked: bool | None  # by jetson_clocks: the GPU runs at the most that its mode allows


def jetson() -> Jetson | None:
    """This machine, if it is a Jetson."""
    l4t = parse_l4t(read_text(Path("/etc/nv_tegra_release")))
    if l4t is None:
        return None
    mode = parse_power_mode(output_of(["nvpmodel", "-q"])) or named_power_mode(
        read_text(Path("/var/lib/nvpmodel/status")), read_text(Path("/etc/nvpmodel.conf"))
    )
    locked = parse_clocks(output_of(["jetson_clocks", "--show"]))
    return Jetson(
        l4t,
        parse_jetpack(debian_version("nvidia-jetpack") or "") or JETPACK.get(l4t),
        read_text(Path("/proc/device-tree/model")).strip("\0\n ") or None,
        mode,
        clocks_locked() if locked is None else locked,  # jetson_clocks answers root alone
    )


def own_gpu() -> Gpu | None:
    """The GPU of a Jetson's chip, which not every release shows to nvidia-smi."""
    return parse_chip(read_text(Path("/proc/device-tree/compatible")))


def parse_l4t(release: str) -> str | None:
    """`# R36 (release), REVISION: 4.3, …` of /etc/nv_tegra_release → `36.4.3`."""
    found = re.search(r"R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", release)
    return f"{found[1]}.{found[2]}" if found else None


def parse_jetpack(version: str) -> str | None:
    """`6.2.1` of `6.2.1+b38`, the version of the package nvidia-jetpack."""
    found = re.match(r"\d+(\.\d+)+", version)
    return found[0] if found else None


def parse_power_mode(text: str) -> str | None:
    """`MAXN` of `NV Power Mode: MAXN`, which nvpmodel says before the mode's number."""
    found = re.search(r"^NV Power Mode:\s*(\S+)", text, re.MULTILINE)
    return found[1] if found else None


def named_power_mode(status: str, conf: str) -> str | None:
    """The name that nvpmodel.conf has for the mode in its status, `pmode:0002`."""
    number = re.search(r"pmode:(\d+)", status)
    names = dict(re.findall(r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", conf, re.MULTILINE))
    return names.get(str(int(number[1]))) if number else None


def parse_clocks(text: str) -> bool | None:
    """Whether `jetson_clocks --show` has the GPU at one frequency; None where it shows no GPU."""
    found = re.search(r"^GPU MinFreq=(\d+) MaxFreq=(\d+)", text, re.MULTILINE)
    return found[1] == found[2] if found else None


def parse_chip(compatible: str) -> Gpu | None:
    """The GPU of the chip that a device tree names among what it is compatible with."""
    for chip, (name, sm) in CHIPS.items():
        if f"nvidia,{chip}" in compatible.split("\0"):
            return Gpu(name, "of the board", None, sm)
    return None


def clocks_locked() -> bool | None:
    """Whether the kernel lets the GPU run at one frequency alone."""
    for folder in sorted(DEVFREQ.glob("*gp[uc]*")):
        least, most = (read_text(folder / f"{end}_freq").strip() for end in ("min", "max"))
        if least and most:
            return least == most
    return None
