"""How many threads a session may use where this process may not use the whole machine."""

from __future__ import annotations

import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # `max 100000`, or microseconds of each period


def fewer_cores(quota: Path = QUOTA) -> int | None:
    """Cores that this process may use, if these are fewer than the machine has; else None.

    None leaves the number to the runtime, which takes a thread a physical core of the machine and
    knows neither of containers' limits nor of affinity: too many threads wait for each other.
    """
    allowed = _affinity()
    limit = _limit(quota)
    if limit is not None:
        allowed = min(allowed, limit)
    return allowed if allowed < (os.cpu_count() or 1) else None


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def _limit(quota: Path) -> int | None:
    """Whole cores of a control group's quota, at least 1; None without one."""
    try:
        most, period = quota.read_text().split()[:2]
        return max(1, int(most) // int(period))
    except (OSError, ValueError):  # no such file, or `max`
        return None
