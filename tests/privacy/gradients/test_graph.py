"""A replay gives what would be computed anew, and no row of an earlier batch is in it."""

import copy
import inspect
import math
import threading
import weakref

import pytest
import torch
from torch import nn

from privacy.clipping import add_to, zero_sums
from privacy.cuda_graph import capture
from privacy.errors import InvalidRequest
from privacy.gradients.engines import LayerwiseEngine, TwoPassEngine
from privacy.gradients.graph import _SPARE, CapturedEngine, FixedBatch
from privacy.gradients.memory import OOMBackoff
from tests.privacy.gradients.recorded import recorded
from tests.privacy.gradients.test_engines import (
    MODELS,
    Counting,
    assert_close,
    denoising_loss,
    flat,
    make_model,
    make_records,
    naive,
    sum_of_clipped,
)

SIZE, C = 4, 0.7
# Empty, fewer than a micro-batch, as many, and more with a rest.
COUNTS = [3, 0, 4, 9]
MODEL = make_model("dense")


class Log:
    """Captures by `way` and counts: captures, and calls of the model."""

    def __init__(self, way):
        self.way, self.captures, self.calls = way, 0, 0

    def __call__(self, work, device):
        self.captures += 1
        return self.way(work, device)

    def loss(self, model, *record):
        self.calls += 1
        return denoising_loss(model, *record)


@pytest.fixture(params=[capture, recorded], ids=["called", "recorded"])
def way(request):
    return request.param


def sums_of(engine, model, records, loss=denoising_loss, clip_norm=C, size=SIZE):
    return sum_of_clipped(engine, model, loss, records, clip_norm, size)


def equal(found, expected):
    return all(torch.equal(found[name], total) for name, total in expected.items())


def batch_of(work):
    """Return the batch that work is done to."""
    return inspect.getclosurevars(work).nonlocals["batch"]


def spoiled(n, fill):
    return tuple(
        torch.full_like(part, fill) if part.is_floating_point() else part
        for part in make_records(n, seed=5)
    )


@pytest.mark.parametrize("name", sorted(MODELS))
def test_sums_are_those_of_the_reference_and_of_every_layer_by_itself(way, name):
    model, engine = make_model(name), CapturedEngine(way)
    for n in COUNTS:
        records = make_records(n, seed=n)
        found = sums_of(engine, model, records)
        assert_close(found, naive(model, records, C)[0], rel=1e-9)
        assert_close(found, sums_of(LayerwiseEngine(), model, records), rel=1e-12)


def test_what_was_captured_serves_all_batches_and_runs_no_python():
    log, model = Log(recorded), make_model("convolution")
    engine = CapturedEngine(log)
    loss = log.loss
    for n in COUNTS:
        sums_of(engine, model, make_records(n), loss)
    assert (log.captures, log.calls) == (1, 1)


def test_an_empty_batch_needs_no_capture():
    log = Log(recorded)
    sums_of(CapturedEngine(log), make_model("dense"), make_records(0))
    assert log.captures == 0


@pytest.mark.parametrize("fill", [math.nan, math.inf, 1e30, -1e154, 3.0])
def test_rows_of_an_earlier_batch_add_exactly_nothing(way, fill):
    model, engine = make_model("up and down"), CapturedEngine(way)
    sums_of(engine, model, spoiled(SIZE, fill))
    for n in (1, 3):
        records = make_records(n)
        expected = sums_of(CapturedEngine(way), model, records)
        assert equal(sums_of(engine, model, records), expected)
        sums_of(engine, model, spoiled(SIZE, fill))


def kept_in_place(batch, records):
    """Wrong: the other rows stay what they were."""
    n = len(records[0])
    for held, given in zip(batch.records, records, strict=True):
        held[:n] = given
    batch.present[:] = torch.arange(len(batch.present)) < n


def all_present(batch, records):
    """Wrong: the other rows are taken for records."""
    SHIPPED_FILL(batch, records)
    batch.present[:] = True


SHIPPED_FILL = FixedBatch.fill


@pytest.mark.parametrize("fill", [math.nan, 1e30, 3.0])
@pytest.mark.parametrize("wrong", [kept_in_place, all_present])
def test_either_guard_alone_keeps_an_earlier_batch_out(way, monkeypatch, wrong, fill):
    monkeypatch.setattr(FixedBatch, "fill", wrong)
    model, engine, records = make_model("up and down"), CapturedEngine(way), make_records(1)
    fresh = sums_of(CapturedEngine(way), model, records)
    sums_of(engine, model, spoiled(SIZE, fill))
    assert equal(sums_of(engine, model, records), fresh)
    if wrong is kept_in_place:
        assert_close(fresh, naive(model, records, C)[0], rel=1e-9)


def test_a_batch_holds_nothing_but_its_records():
    records = make_records(3)
    batch = FixedBatch(records, dict(make_model("dense").named_parameters()), SIZE)
    batch.fill(spoiled(SIZE, math.nan))
    batch.fill(records)
    assert batch.present.tolist() == [True, True, True, False]
    for held, given in zip(batch.records, records, strict=True):
        assert torch.equal(held[:3], given)
        assert not held[3:].any()
    assert "tensor" not in repr(batch)


def test_the_caller_owns_the_sums(way):
    model, engine, records = make_model("normed"), CapturedEngine(way), make_records(SIZE)
    first = sums_of(engine, model, records)
    kept = copy.deepcopy(first)
    second = sums_of(engine, model, make_records(SIZE, seed=9))
    third = sums_of(engine, model, spoiled(SIZE, math.nan))
    assert equal(first, kept)
    owned = [
        {total.untyped_storage().data_ptr() for total in sums.values()}
        for sums in (first, second, third)
    ]
    assert not owned[0] & owned[1] and not owned[1] & owned[2] and not owned[0] & owned[2]


def test_stale_values_of_the_last_call_do_not_change_the_sums(way):
    model, records, batches = make_model("normed"), make_records(3), []

    def spied(work, device):
        batches.append(batch_of(work))
        return way(work, device)

    engine = CapturedEngine(spied)
    expected = sums_of(engine, model, records)
    (batch,) = batches
    for tensor in (*batch.records, *batch.sums.values()):
        tensor.fill_(math.nan if tensor.is_floating_point() else 1)
    batch.present.fill_(True)
    assert equal(sums_of(engine, model, records), expected)


def test_parameters_and_buffers_that_change_in_place_are_seen():
    log, model, records = Log(recorded), make_model("labelled"), make_records(3)
    engine = CapturedEngine(log)
    for _ in range(3):
        found = sums_of(engine, model, records)
        assert_close(found, naive(model, records, C)[0], rel=1e-9)
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.add_(0.3)
    assert log.captures == 1


def replaced_parameter(model):
    model.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))


def moved_parameter(model):
    model.scale.data = model.scale.detach() * 3


def replaced_buffer(model):
    model.frequencies = torch.tensor([0.5, 0.25, 3.0], dtype=torch.float64)


def frozen_parameter(model):
    model.mix.weight.requires_grad_(False)


def replaced_layer(model):
    model.mix = nn.Linear(6, model.mix.out_features).double()


CHANGES = [replaced_parameter, moved_parameter, replaced_buffer, frozen_parameter, replaced_layer]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_model_that_changed_is_captured_anew(change):
    log, model, records = Log(recorded), make_model("labelled"), make_records(3)
    engine = CapturedEngine(log)
    sums_of(engine, model, records)
    change(model)
    found = sums_of(engine, model, records)
    assert_close(found, naive(model, records, C)[0], rel=1e-9)
    assert log.captures == 2


def test_a_model_that_no_longer_trains_is_captured_anew():
    model = nn.Sequential(nn.Linear(50, 1), nn.Dropout(0.5))
    log, records = Log(recorded), (torch.ones(SIZE, 50),)
    engine = CapturedEngine(log)

    def loss(m, x):
        return m(x[None]).sum()

    sums_of(engine, model, records, loss)
    whole = sums_of(engine, model.eval(), records, loss)
    # No record is dropped: each adds C, in one direction.
    assert flat(whole).norm() == pytest.approx(SIZE * C)
    assert log.captures == 2


def test_dropout_is_drawn_anew_in_every_replay():
    model = nn.Sequential(nn.Linear(50, 1), nn.Dropout(0.5))
    engine, records = CapturedEngine(recorded), (torch.ones(20, 50),)

    def loss(m, x):
        return m(x[None]).sum()

    first, second = (sums_of(engine, model, records, loss, size=20) for _ in range(2))
    assert not equal(first, second)


class Flattened(nn.Module):
    """Another model of the same parameters."""

    def __init__(self, model):
        super().__init__()
        self.inner, self.outer = model.inner, model.outer

    def forward(self, x, sigma, label):
        hidden = self.inner(torch.cat([x.flatten(1), sigma[:, None]], dim=1))
        return self.outer(hidden).reshape(x.shape)


def doubled(model, *record):
    return 2 * denoising_loss(model, *record)


@pytest.mark.parametrize(
    "other",
    [
        {"model": Flattened(MODEL)},
        {"loss": doubled},
        {"clip_norm": 1e9},
        {"size": 2},
        {"size": SIZE + 1},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_model_loss_clip_norm_or_size_is_captured_anew(other):
    log, records = Log(recorded), make_records(5)
    engine = CapturedEngine(log)
    for change in ({}, other, {}, {}):
        request = {"model": MODEL, **change}
        found = sums_of(engine, records=records, **request)
        assert_close(found, sums_of(LayerwiseEngine(), records=records, **request), 1e-12)
    assert log.captures == 3


def test_records_of_another_shape_or_type_are_captured_anew():
    log, model = Log(recorded), nn.Linear(4, 1)
    engine = CapturedEngine(log)

    def loss(m, x):
        return m(x.float()).square().sum()

    for records in (torch.rand(3, 4), torch.rand(3, 2, 4), torch.rand(3, 4).double()):
        found = sums_of(engine, model, (records,), loss)
        expected = sums_of(LayerwiseEngine(), model, (records,), loss)
        assert_close(found, expected, rel=1e-9)
    assert log.captures == 3


def test_a_new_object_with_the_identity_of_an_old_one_is_captured_anew():
    """An identity is free again once its object is gone, so what was captured holds its objects."""
    log, records = Log(recorded), make_records(2)
    engine, model = CapturedEngine(log), make_model("dense")
    for factor in range(1, 6):

        def loss(m, *record, factor=factor):
            return factor * denoising_loss(m, *record)

        found = sums_of(engine, model, records, loss, 1e9)
        assert_close(found, sums_of(LayerwiseEngine(), model, records, loss, 1e9), 1e-12)
        del loss
    assert log.captures == 5


class Room:
    """Records only so many rows; above, memory runs out in the middle of it.

    Attributes:
        held: for each try, how many tensors of the tries before are still in memory.
    """

    def __init__(self, rows, works=True):
        self.rows, self.works = rows, works
        self.held, self.tries, self._seen = [], [], []

    def __call__(self, work, device):
        batch = batch_of(work)
        self.held.append(sum(seen() is not None for seen in self._seen))
        self.tries.append(len(batch.present))
        self._seen += [weakref.ref(t) for t in (*batch.records, *batch.sums.values())]
        if len(batch.present) <= self.rows:
            return recorded(work, device)
        if self.works:
            work()
        raise torch.OutOfMemoryError("no room")


def backed_off(backoff, model, records):
    """The sum over the records, as `PrivateGradient` forms it."""
    sums, done = zero_sums(dict(model.named_parameters())), 0
    while done < len(records[0]):
        size, part = backoff.micro_batch, None
        with backoff:
            chunk = tuple(tensor[done : done + size] for tensor in records)
            part = backoff.engine.sum_of_clipped(model, denoising_loss, chunk, C, size)
        if part is not None:
            add_to(sums, part)
            done += size
    return sums


@pytest.mark.parametrize("works", [False, True], ids=["in its first work", "in its capture"])
def test_out_of_memory_halves_the_micro_batch_and_frees_the_failed_one(works):
    room, model, records = Room(2, works), make_model("normed"), make_records(9)
    backoff = OOMBackoff(CapturedEngine(room), TwoPassEngine(), micro_batch=16)
    expected = naive(model, records, C)[0]
    for _ in range(2):
        assert_close(backed_off(backoff, model, records), expected, rel=1e-9)
    assert room.tries == [16, 8, 4, 2]
    assert room.held == [0] * 4


def test_out_of_memory_for_one_record_falls_back_to_the_leaner_engine():
    room, model, records = Room(0), make_model("normed"), make_records(3)
    backoff = OOMBackoff(CapturedEngine(room), TwoPassEngine(), micro_batch=2)
    assert_close(backed_off(backoff, model, records), naive(model, records, C)[0], rel=1e-9)
    assert room.tries == [2, 1]
    assert not any(seen() is not None for seen in room._seen)


def test_the_old_graph_is_freed_before_the_new_one_is_captured():
    room, model, records = Room(99), make_model("normed"), make_records(3)
    engine = CapturedEngine(room)
    for clip_norm in (1.0, 2.0, 3.0):
        sums_of(engine, model, records, clip_norm=clip_norm)
    assert room.held == [0] * 3
    assert any(seen() is not None for seen in room._seen)
    del engine
    assert not any(seen() is not None for seen in room._seen)


def test_a_capture_leaves_memory_for_the_rest_of_a_step(monkeypatch):
    """A graph keeps all memory that was used while it was captured."""
    spare, alive = [], []
    empty = torch.empty

    def spied(*args, **kwargs):
        made = empty(*args, **kwargs)
        if kwargs.get("dtype") is torch.uint8:
            spare.append((made.nbytes, weakref.ref(made)))
        return made

    def capturing(work, device):
        alive.append([made() is not None for _, made in spare])
        return recorded(work, device)

    monkeypatch.setattr(torch, "empty", spied)
    model, records = make_model("dense"), make_records(SIZE)
    sums_of(CapturedEngine(capturing), model, records)
    needed = sum(part.nbytes for part in records) + 8 * sum(p.numel() for p in model.parameters())
    assert [size for size, _ in spare] == [_SPARE * needed]
    assert alive == [[True]]
    assert spare[0][1]() is None


@pytest.mark.parametrize("in_place", [True, False])
def test_a_model_that_writes_to_its_buffers_is_refused_every_time(in_place):
    """What was captured of it would write unseen."""
    engine, model = CapturedEngine(recorded), Counting(in_place)
    for _ in range(2):
        with pytest.raises((InvalidRequest, RuntimeError)):
            sums_of(engine, model, (torch.ones(2, 4),), lambda m, x: m(x).sum())


class Remembering(nn.Module):
    """Writes to a buffer past autograd and vmap, as a layer of one's own may."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen.add_(1.0)
        return self.linear(x)


def test_refused_work_is_not_replayed():
    log, model = Log(recorded), Remembering()
    engine, records = CapturedEngine(log), (torch.ones(2, 4),)

    def loss(m, x):
        return m(x).sum()

    for _ in range(3):
        with pytest.raises(InvalidRequest, match="buffer 'seen'"):
            sums_of(engine, model, records, loss)
    assert log.captures == 3


def test_threads_do_not_share_a_batch():
    """Another training takes its step between this one's filling and its replay."""
    model, others = make_model("dense"), make_records(SIZE, seed=8)
    results = []

    def interrupted(work, device):
        def replay():
            if threading.current_thread() is threading.main_thread():
                other = threading.Thread(
                    target=lambda: results.append(sums_of(engine, model, others))
                )
                other.start()
                other.join()
            work()

        return replay

    engine, records = CapturedEngine(interrupted), make_records(3)
    found = sums_of(engine, model, records)
    assert equal(found, sums_of(CapturedEngine(), model, records))
    assert equal(results[0], sums_of(CapturedEngine(), model, others))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("error:the GPU launches kernel by kernel:RuntimeWarning")
@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_gpu_graph_computes_what_its_kernels_compute(name):
    log = Log(capture)
    model, engine = make_model(name).cuda(), CapturedEngine(log)
    loss = log.loss
    for step, n in enumerate([SIZE, *COUNTS, SIZE]):
        records = tuple(part.cuda() for part in make_records(n, seed=step))
        if step == 3:
            sums_of(engine, model, tuple(part.cuda() for part in spoiled(SIZE, math.nan)), loss)
        found = sums_of(engine, model, records, loss)
        expected = sums_of(LayerwiseEngine(), model, records)
        assert_close(found, expected, rel=1e-9)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
    # Warm-up and capture, and no Python from then on.
    assert (log.captures, log.calls) == (1, 4)
