"""The machine that the numbers belong to."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

_PACKAGES = ("torch", "opacus", "numpy", "pyarrow", "pillow", "sqlalchemy")


def describe() -> dict[str, str | int | float | dict[str, str]]:
    """Return processor, cores that this process may use, threads, load, system and versions."""
    return {
        "processor": _processor(),
        "cores": _cores(),
        "torch threads": torch.get_num_threads(),
        "load before": round(os.getloadavg()[0], 2),
        "device": "cpu",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def busy() -> bool:
    """Return whether others use the cores: threads then wait for each other at every small step."""
    return os.getloadavg()[0] > _cores() / 2


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"


def _cores() -> int:
    # Containers and batch systems give a process fewer cores than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
