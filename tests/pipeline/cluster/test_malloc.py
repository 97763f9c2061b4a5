import platform
import resource
import subprocess
import sys

import pytest

# Takes, fills and frees 6 MiB over and over; prints how many new pages the system had to clear.
_CHURNS = """
import ctypes, resource, sys
from pipeline.cluster.actor_group import tune_malloc
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
if sys.argv[1] == "keep":
    tune_malloc()
def work():
    blocks = [libc.malloc(100_000) for _ in range(64)]
    for block in blocks:
        ctypes.memset(block, 1, 100_000)
    for block in blocks:
        libc.free(block)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_used_again():
    faults = {}
    for way in ("plain", "keep"):
        done = subprocess.run(
            [sys.executable, "-c", _CHURNS, way], check=True, capture_output=True, text=True
        )
        faults[way] = int(done.stdout)
    pages = 50 * 64 * 100_000 // resource.getpagesize()
    assert faults["keep"] < pages / 10 < pages / 2 < faults["plain"]


def test_without_glibc_nothing_happens(monkeypatch):
    from pipeline.cluster import actor_group

    monkeypatch.setattr(actor_group.ctypes, "CDLL", lambda name: object())
    actor_group.tune_malloc()
