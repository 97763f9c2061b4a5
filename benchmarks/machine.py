"""The machine on which the numbers were measured."""

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
        "cores": cores(),
        "torch threads": torch.get_num_threads(),
        "load before": load(),
        "device": _device(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def load() -> float:
    """Return the load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def busy() -> bool:
    """Return whether other processes use the cores, which makes threads wait for each other."""
    return load() > cores() / 2


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"


def cores() -> int:
    """Return the cores that this process may use."""
    # Containers and batch systems give a process fewer cores than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
