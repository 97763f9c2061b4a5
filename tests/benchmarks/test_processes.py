"""What is read from /proc."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import processes

ROOT = Path(__file__).parents[2]


def test_processor_time_is_that_of_all_descendants(tmp_path):
    def process(pid, parent, user, system, name="ray::IDLE (x) y"):
        folder = tmp_path / str(pid)
        folder.mkdir()
        rest = " ".join(["S", str(parent), *"0" * 9, str(user), str(system), "0"])
        (folder / "stat").write_text(f"{pid} ({name}) {rest}\n")

    process(1, 0, 900, 900)
    process(10, 1, 100, 50)
    process(11, 10, 200, 0)
    process(12, 11, 0, 300)
    process(13, 1, 999, 999)
    (tmp_path / "self").mkdir()
    tick = processes.os.sysconf("SC_CLK_TCK")
    found = processes.cpu_seconds(10, tmp_path)
    assert found == {10: 150 / tick, 11: 200 / tick, 12: 300 / tick}
    assert processes.cpu_seconds(10, tmp_path / "none") == {}


def test_the_busiest_process_is_the_worker():
    before, after = {1: 1.0, 2: 5.0}, {1: 1.5, 2: 15.0, 3: 0.25}
    assert processes.others(before, after) == pytest.approx(0.75)
    assert processes.others({}, {}) == 0


def test_peak_memory_is_this_process_own(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t 9999 kB\nVmHWM:\t    1234 kB\nVmRSS:\t 5 kB\n")
    assert processes.peak_bytes(status) == 1234 * 1024
    assert processes.peak_bytes(tmp_path / "none") > 0
    here = processes.peak_bytes()
    held = bytearray(b"x" * 2**26)
    assert processes.peak_bytes() >= here
    assert len(held) == 2**26


def test_a_child_does_not_begin_with_its_parents_peak():
    held = b"x" * 2**28
    code = "from benchmarks.processes import peak_bytes; print(peak_bytes())"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert int(shown.stdout) < len(held)


def test_a_failed_process_tells_why():
    with pytest.raises(RuntimeError, match="no_such_module"):
        processes.last_line(processes.start("no_such_module"))


def test_what_a_process_prints_last_is_its_answer():
    assert processes.last_line(processes.start("platform")).strip()
