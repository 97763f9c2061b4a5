"""What a compiler makes is taken if it is right, and nothing is lost where it is not."""

import copy
import pickle
import shutil
import warnings

import pytest
import torch

from privacy.gradients import CompiledEngine, compiled
from privacy.gradients.cuda_graph import replayable
from privacy.gradients.memory import WithinMemory
from privacy.gradients.two_pass import TwoPassEngine
from tests.privacy.gradients.recorded import recorded
from tests.privacy.gradients.test_captured import SIZE, C, sums_of
from tests.privacy.gradients.test_engines import (
    MODELS,
    assert_close,
    denoising_loss,
    make_model,
    make_records,
    naive,
)


class Last:
    """In place of `Fastest`: the last way, which is what was compiled, if it is one."""

    def __init__(self, *ways):
        self.chosen = ways[-1]

    def __call__(self, *args):
        return self.chosen(*args)


@pytest.fixture(autouse=True)
def _whatever_is_faster(monkeypatch):
    monkeypatch.setattr(compiled, "Fastest", Last)


class Compiler:
    """Gives the graph back, or what `spoil` makes of its results, and counts."""

    def __init__(self, spoil=None, error=None):
        self.spoil, self.error, self.examples, self.runs = spoil, error, [], 0

    def __call__(self, graph, example):
        self.examples.append(example)
        if self.error is not None:
            raise self.error

        def run(*tensors):
            self.runs += 1
            found = graph(*tensors)
            return self.spoil(*found) if self.spoil else found

        return run


@pytest.mark.parametrize("way", [replayable, recorded], ids=["called", "recorded"])
@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.filterwarnings("error")
def test_sums_are_those_of_the_reference(way, name):
    model, compiler = make_model(name), Compiler()
    engine = CompiledEngine(way, compiler)
    for n in (3, 0, 4, 9):
        records = make_records(n, seed=n)
        found = sums_of(engine, model, records)
        sums, norms, losses = naive(model, records, C)
        assert_close(found.sums, sums, rel=1e-9)
        assert found.norms.tolist() == pytest.approx(norms, rel=1e-9)
        assert found.losses.tolist() == pytest.approx(losses, rel=1e-9)
    assert len(compiler.examples) == 1
    assert compiler.runs > 2


def test_an_empty_batch_compiles_nothing():
    compiler = Compiler()
    sums_of(CompiledEngine(compiler=compiler), make_model("dense"), make_records(0))
    assert compiler.examples == []


def test_the_compiler_sees_no_record_and_not_how_many_there_are():
    model, seen = make_model("normed"), []
    for n in (1, 3, 9):
        compiler = Compiler()
        sums_of(CompiledEngine(compiler=compiler), model, make_records(n, seed=n))
        (example,) = compiler.examples
        seen.append(example)
        of_records = example[-4:]
        assert [len(part) for part in of_records] == [SIZE] * 4
        for part, private in zip(of_records, make_records(n, seed=n), strict=True):
            if part.is_floating_point():
                assert not torch.isin(part, private).any()
    for example in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(example, seen[0], strict=True))


def scaled(losses, *found):
    return losses, *(1.1 * gradient for gradient in found)


def one_lost(losses, first, *found):
    return losses, torch.zeros_like(first), *found


def one_moved(losses, first, *found):
    return losses, first.roll(1, 0), *found


def of_another_loss(losses, *found):
    return 2 * losses, *found


def not_finite(losses, *found):
    return losses, *(gradient * torch.nan for gradient in found)


def mixed(losses, first, *found):
    """Far below any tolerance."""
    return losses, first + 1e-12 * first.mean(0), *found


WRONG = [scaled, one_lost, one_moved, of_another_loss, not_finite]


@pytest.mark.parametrize("spoil", [*WRONG, mixed], ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("name", ["convolution", "labelled"])
def test_what_is_wrong_is_not_taken(spoil, name):
    model, records = make_model(name), make_records(3)
    reason = "reach another's" if spoil is mixed else "gave other gradients"
    engine = CompiledEngine(compiler=Compiler(spoil))
    with pytest.warns(RuntimeWarning, match=reason):
        found = sums_of(engine, model, records)
    assert_close(found.sums, naive(model, records, C)[0], rel=1e-9)


@pytest.mark.parametrize("offset", [1e6, 1e-6])
@pytest.mark.parametrize("spoil", [one_lost, of_another_loss], ids=lambda spoil: spoil.__name__)
def test_neither_losses_nor_gradients_hide_the_others(spoil, offset):
    model, records = make_model("convolution"), make_records(3)

    def loss(m, *record):
        return offset + offset**-0.5 * denoising_loss(m, *record)

    engine = CompiledEngine(compiler=Compiler(spoil))
    with pytest.warns(RuntimeWarning, match="gave other gradients"):
        engine.sum_of_clipped(model, loss, records, C, SIZE)


# Not what is only scaled: these records are clipped.
@pytest.mark.parametrize("spoil", [one_lost, one_moved], ids=lambda spoil: spoil.__name__)
def test_what_is_wrong_would_do_harm(spoil, monkeypatch):
    """The check is not for nothing."""
    monkeypatch.setattr(compiled, "_close", lambda found, expected: True)
    model, records = make_model("convolution"), make_records(3)
    found = sums_of(CompiledEngine(compiler=Compiler(spoil)), model, records)
    with pytest.raises(AssertionError):
        assert_close(found.sums, naive(model, records, C)[0], rel=1e-3)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("no C++ compiler"), ImportError("no Triton"), AssertionError(), OSError()],
)
def test_a_compiler_that_fails_costs_nothing_but_time(error):
    model, records = make_model("normed"), make_records(3)
    engine = CompiledEngine(compiler=Compiler(error=error))
    with pytest.warns(RuntimeWarning, match=f"failed with {type(error).__name__}"):
        found = sums_of(engine, model, records)
    assert_close(found.sums, naive(model, records, C)[0], rel=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sums_of(engine, model, records)


def test_what_cannot_be_traced_is_computed_by_operations():
    factor, model, records = torch.tensor(2.0), make_model("dense"), make_records(3)

    def loss(m, *record):
        return factor * denoising_loss(m, *record)

    engine = CompiledEngine(compiler=Compiler())
    with pytest.warns(RuntimeWarning, match="NotTraceable"):
        found = engine.sum_of_clipped(model, loss, records, 1e9, SIZE)
    twice = {name: 2 * total for name, total in naive(model, records, 1e9)[0].items()}
    assert_close(found.sums, twice, rel=1e-9)


def test_without_room_for_the_operations_nothing_is_compiled(monkeypatch):
    """Minutes of compiling would be lost for every size that does not fit."""
    shipped = compiled.called

    def full(model, loss, records):
        if len(records[0]) > 2:
            raise torch.OutOfMemoryError("no room")
        return shipped(model, loss, records)

    monkeypatch.setattr(compiled, "called", full)
    model, records, compiler = make_model("normed"), make_records(9), Compiler()
    engine = WithinMemory(CompiledEngine(compiler=compiler), TwoPassEngine())
    found = sums_of(engine, model, records, size=8)
    assert_close(found.sums, naive(model, records, C)[0], rel=1e-9)
    assert [len(example[-1]) for example in compiler.examples] == [2]


def test_the_faster_way_is_taken(monkeypatch):
    ways = []

    class Spied(Last):
        def __init__(self, *all_ways):
            ways.extend(all_ways)
            super().__init__(*all_ways)

    monkeypatch.setattr(compiled, "Fastest", Spied)
    model, records, compiler = make_model("dense"), make_records(SIZE), Compiler()
    sums_of(CompiledEngine(compiler=compiler), model, records)
    before = compiler.runs
    for way in ways:
        way(*records)
    assert len(ways) == 2
    assert compiler.runs == before + 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_a_copy_compiles_for_itself(copied):
    engine = CompiledEngine(recorded, compiled.inductor)
    other = copied(engine)
    assert type(other) is CompiledEngine
    assert (other._replayable, other._compiler) == (recorded, compiled.inductor)
    assert other._kept is not engine._kept


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs a C++ compiler")
@pytest.mark.filterwarnings("error:gradients are computed:RuntimeWarning")
@pytest.mark.parametrize("name", ["up and down", "fused attention"])
def test_torchs_own_compiler_gives_the_same(name):
    model, engine = make_model(name, torch.float32), CompiledEngine()
    for n in (3, 5):
        records = make_records(n, torch.float32, seed=n)
        found = sums_of(engine, model, records)
        assert_close(found.sums, naive(model, records, C)[0], rel=2e-5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
    spoiled = make_records(3, torch.float32)
    spoiled[0][1] = torch.nan
    kept = tuple(part[[0, 2]] for part in spoiled)
    found = sums_of(engine, model, spoiled)
    assert_close(found.sums, naive(model, kept, C)[0], rel=2e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("error:gradients are computed:RuntimeWarning")
@pytest.mark.filterwarnings("error:a GPU does its work kernel by kernel:RuntimeWarning")
@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_gpus_compiled_graph_gives_the_same(name):
    model, engine = make_model(name, torch.float32), CompiledEngine()
    on_gpu = copy.deepcopy(model).cuda()
    for n in (3, 0, 9):
        records = make_records(n, torch.float32, seed=n)
        found = sums_of(engine, on_gpu, tuple(part.cuda() for part in records))
        sums = {key: total.cpu() for key, total in found.sums.items()}
        assert_close(sums, naive(model, records, C)[0], rel=2e-4)
