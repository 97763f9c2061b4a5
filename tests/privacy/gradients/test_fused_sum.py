"""The kernel is taken where it gives what torch's operations give, and nowhere else."""

import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from privacy.clipping import sum_clipped
from privacy.gradients import fused_sum as module
from privacy.gradients.fused_sum import fused_sum, gives_the_same

CPU, GPU = torch.device("cpu"), torch.device("cuda")
KERNEL = "privacy.gradients.triton_sum"


def by_where(vectors, factors):
    return torch.where((factors == 0)[:, None], 0.0, vectors.double() * factors[:, None]).sum(0)


def not_left_out(vectors, factors):
    return torch.tensordot(factors, vectors.double(), dims=1)


def zeroed_and_counted(vectors, factors):
    """Puts NaN to zero, and so lets a record in that is left out for an infinite norm."""
    return by_where(vectors.nan_to_num(0, 1, 1), factors.clamp(min=1e-9))


def in_float32(vectors, factors):
    return by_where(vectors, factors).float()


def added_in_float32(vectors, factors):
    scaled = torch.where((factors == 0)[:, None], 0.0, vectors * factors[:, None].float())
    return scaled.sum(0).double()


def last_record_forgotten(vectors, factors):
    kept = factors.clone()
    kept[-1] = 0.0
    return by_where(vectors, kept)


def first_record_forgotten(vectors, factors):
    return by_where(vectors[1:], factors[1:])


def last_columns_forgotten(vectors, factors):
    total = by_where(vectors, factors)
    total[128 * (len(total) // 128) :] = 0.0
    return total


@pytest.fixture(autouse=True)
def nothing_remembered():
    fused_sum.cache_clear()
    yield
    fused_sum.cache_clear()


@pytest.mark.parametrize("right", [sum_clipped, by_where])
def test_right_sums_are_the_same(right):
    assert gives_the_same(right, CPU)


@pytest.mark.parametrize(
    "wrong",
    [
        not_left_out,
        zeroed_and_counted,
        in_float32,
        added_in_float32,
        first_record_forgotten,
        last_record_forgotten,
        last_columns_forgotten,
    ],
)
def test_wrong_sums_are_not(wrong):
    assert not gives_the_same(wrong, CPU)


def test_a_cpu_sums_by_torchs_operations():
    assert fused_sum(CPU) is sum_clipped


def test_without_triton_the_operations_serve(monkeypatch):
    monkeypatch.setitem(sys.modules, KERNEL, None)
    with pytest.warns(RuntimeWarning, match="Triton is missing"):
        assert fused_sum(GPU) is sum_clipped


@pytest.mark.parametrize(
    ("sound", "told"), [(False, "gave another sum"), (ValueError("no compiler"), "ValueError")]
)
def test_a_kernel_that_fails_is_not_taken(monkeypatch, sound, told):
    def tried(candidate, device):
        if isinstance(sound, Exception):
            raise sound
        return sound

    monkeypatch.setitem(sys.modules, KERNEL, SimpleNamespace(triton_sum=not_left_out))
    monkeypatch.setattr(module, "gives_the_same", tried)
    with pytest.warns(RuntimeWarning, match=told):
        assert fused_sum(GPU) is sum_clipped


def test_a_sound_kernel_is_taken(monkeypatch):
    monkeypatch.setitem(sys.modules, KERNEL, SimpleNamespace(triton_sum=by_where))
    monkeypatch.setattr(module, "gives_the_same", lambda candidate, device: candidate is by_where)
    assert fused_sum(GPU) is by_where


INTERPRETED = f"""
import torch
from privacy.gradients.fused_sum import gives_the_same
from {KERNEL} import triton_sum
assert gives_the_same(triton_sum, torch.device("cpu"))
empty = triton_sum(torch.zeros(0, 3), torch.zeros(0, dtype=torch.float64))
assert empty.tolist() == [0.0] * 3
"""

COMPILED = f"""
import triton
from triton.backends.compiler import GPUTarget
from {KERNEL} import _COLUMNS, _ROWS, _sum
sizes = {{"ROWS": _ROWS, "COLUMNS": _COLUMNS}}
types = dict(vectors_nm="*fp32", factors_n="*fp64", total_m="*fp64", n="i32", m="i32")
source = triton.compiler.ASTSource(_sum, types | dict.fromkeys(sizes, "constexpr"), sizes)
assert triton.compile(source, GPUTarget("cuda", 90, 32)).asm["cubin"]
assert [p.name for p in _sum.params if p.do_not_specialize] == ["n"]
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize(("code", "interpret"), [(INTERPRETED, "1"), (COMPILED, "0")])
def test_the_kernel_without_a_gpu(code, interpret):
    """Its numbers in Triton's interpreter, which lets pass what the compiler for a GPU does not.

    No kernel is made for a number of records, which is private: kernels are kept on disk.
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRITON_INTERPRET": interpret},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_has_the_kernel():
    assert fused_sum(torch.device("cuda")) is not sum_clipped
