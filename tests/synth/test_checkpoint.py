import dataclasses
import json
import pickle
import struct

import pytest
import torch
from torch import nn

from privacy.errors import IntegrityBroken, InvalidRequest
from synth.checkpoint import Checkpoint, keep_last, load, newest, save


def trained(optimizer_type=torch.optim.Adam, steps=3, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.Linear(4, 2))
    first, *rest = model.parameters()
    optimizer = optimizer_type(
        [{"params": [first], "weight_decay": 0.3}, {"params": rest}], **({"lr": 0.01} | options)
    )
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(5, 3)).square().mean().backward()
    optimizer.step()


def checkpoint_at(number: int, attempt: int = 1) -> Checkpoint:
    model, optimizer = trained(steps=1)
    return Checkpoint(
        step=number,
        attempt=attempt,
        phase="private",
        model=model.state_dict(),
        ema={name: 0.5 * tensor for name, tensor in model.state_dict().items()},
        optimizer=optimizer.state_dict(),
        ledger_head="ab" * 32,
    )


def same(a, b):
    """Equal in values, types and dtypes, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize(
    ("optimizer_type", "options"),
    [
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.AdamW, {"betas": (0.8, 0.95), "weight_decay": 0.1}),
        (torch.optim.Adam, {"lr": torch.tensor(0.025)}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.SGD, {}),
    ],
)
def test_optimizers_come_back_exactly_and_go_on_the_same(tmp_path, optimizer_type, options):
    model, optimizer = trained(optimizer_type, **options)
    state = dataclasses.replace(
        checkpoint_at(3), model=model.state_dict(), optimizer=optimizer.state_dict()
    )
    loaded = load(save(tmp_path, state))
    assert same(loaded.optimizer, optimizer.state_dict())
    twin, twin_optimizer = trained(optimizer_type, steps=0)
    twin.load_state_dict(loaded.model)
    twin_optimizer.load_state_dict(loaded.optimizer)
    for _ in range(3):
        step(model, optimizer)
        step(twin, twin_optimizer)
    assert same(dict(twin.state_dict()), dict(model.state_dict()))


def test_everything_else_comes_back(tmp_path):
    before = checkpoint_at(123, attempt=2)
    path = save(tmp_path, before)
    assert path == tmp_path / "step-000123"
    after = load(path)
    for name in ("step", "attempt", "phase", "ledger_head"):
        assert getattr(after, name) == getattr(before, name)
    assert same(dict(after.ema), dict(before.ema))
    assert same(dict(after.model), dict(before.model))


def test_half_precision_empty_and_tied_weights_survive(tmp_path):
    shared = torch.randn(4, 4)
    model = {
        "a": shared,
        "b": shared,
        "view": shared[1:, ::2],
        "half": torch.randn(3).bfloat16(),
        "none": torch.empty(0, 2),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
    }
    loaded = load(save(tmp_path, dataclasses.replace(checkpoint_at(1), model=model, ema={})))
    assert all(same(loaded.model[name], tensor.contiguous()) for name, tensor in model.items())
    assert loaded.ema == {}


@pytest.mark.parametrize(
    "state",
    [
        torch.Generator().get_state(),
        torch.ones(5, dtype=torch.bool),
    ],
    ids=["generator", "mask"],
)
def test_generator_states_and_masks_have_no_place(tmp_path, state):
    for change in (
        {"model": {"x": state}},
        {"ema": {"x": state}},
        {"optimizer": {"state": {0: {"x": state}}, "param_groups": []}},
    ):
        with pytest.raises(InvalidRequest, match="never masks"):
            save(tmp_path, dataclasses.replace(checkpoint_at(1), **change))
    assert list(tmp_path.iterdir()) == []


def test_objects_that_would_need_pickle_are_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="Linear"):
        save(tmp_path, dataclasses.replace(checkpoint_at(1), optimizer={"x": nn.Linear(1, 1)}))


def test_nothing_is_ever_unpickled(tmp_path):
    path = save(tmp_path, checkpoint_at(1))
    for name in ("checkpoint.json", "model.safetensors"):
        data = (path / name).read_bytes()
        (path / name).write_bytes(pickle.dumps({"a": 1}))
        with pytest.raises(IntegrityBroken, match=name):
            load(path)
        (path / name).write_bytes(data)
    load(path)


@pytest.mark.parametrize("name", ["model", "ema", "optimizer"])
def test_every_byte_region_of_a_tensor_file_is_guarded(tmp_path, name):
    path = save(tmp_path, checkpoint_at(1)) / f"{name}.safetensors"
    data = path.read_bytes()
    (header,) = struct.unpack("<Q", data[:8])
    regions = [0, 7, 8, 8 + header - 1, 8 + header, len(data) - 1]
    for position in [*regions, *range(8 + header, len(data), 37)]:
        damaged = bytearray(data)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(IntegrityBroken, match=path.name):
            load(path.parent)
    for damaged in (data[:-1], data + b"x", b""):
        path.write_bytes(damaged)
        with pytest.raises(IntegrityBroken, match=path.name):
            load(path.parent)
    path.unlink()
    with pytest.raises(IntegrityBroken, match=path.name):
        load(path.parent)


def test_every_byte_region_of_the_record_is_guarded(tmp_path):
    path = save(tmp_path, checkpoint_at(1)) / "checkpoint.json"
    data = path.read_bytes()
    flips = (0x01, 0x20, 0x80)
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= flips[position % 3]
        path.write_bytes(damaged)
        with pytest.raises(IntegrityBroken, match=r"checkpoint\.json"):
            load(path.parent)


def test_what_a_parser_forgives_in_the_record_is_damage(tmp_path):
    path = save(tmp_path, checkpoint_at(1)) / "checkpoint.json"
    path.write_bytes(path.read_bytes().replace(b",", b", ", 1))
    with pytest.raises(IntegrityBroken, match="damaged"):
        load(path.parent)


def test_a_record_of_another_format_is_told_from_a_damaged_one(tmp_path):
    path = save(tmp_path, checkpoint_at(1)) / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"format": 1}, indent=1))
    with pytest.raises(IntegrityBroken, match="another format"):
        load(path.parent)


def test_a_record_edited_with_care_is_still_damaged(tmp_path):
    path = save(tmp_path, checkpoint_at(1)) / "checkpoint.json"
    record = json.loads(path.read_bytes())
    record["step"] = 0
    path.write_text(json.dumps(record, sort_keys=True, separators=(",", ":")))
    with pytest.raises(IntegrityBroken, match="digest"):
        load(path.parent)


def test_newest_skips_damaged_ones_and_says_so(tmp_path):
    for number in (9, 999_999, 10_000_000):
        save(tmp_path, checkpoint_at(number))
    assert newest(tmp_path).checkpoint.step == 10_000_000
    assert newest(tmp_path).skipped == ()
    (tmp_path / "step-10000000" / "ema.safetensors").write_bytes(b"")
    (tmp_path / "step-999999" / "checkpoint.json").unlink()
    (tmp_path / ".step-000500.00ff00ff00ff.part").mkdir()
    found = newest(tmp_path)
    assert found.checkpoint.step == 9
    first, second = found.skipped
    assert "step-10000000" in first
    assert "ema.safetensors" in first
    assert "step-999999" in second


def test_no_checkpoint_is_no_error(tmp_path):
    assert newest(tmp_path).checkpoint is None
    assert newest(tmp_path / "absent").checkpoint is None


def test_a_checkpoint_of_the_same_step_gives_way(tmp_path):
    save(tmp_path, checkpoint_at(5, attempt=1))
    (tmp_path / "step-000005" / "model.safetensors").write_bytes(b"damaged")
    save(tmp_path, checkpoint_at(5, attempt=2))
    assert newest(tmp_path).checkpoint.attempt == 2
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]


def test_the_last_sound_ones_are_kept(tmp_path):
    for number in range(1, 7):
        save(tmp_path, checkpoint_at(number))
    for damaged in (2, 6):
        (tmp_path / f"step-00000{damaged}" / "model.safetensors").write_bytes(b"")
    keep_last(tmp_path, 2)
    # 5 and 4 are the newest sound ones; damaged 6 stays as evidence, 3, damaged 2 and 1 go.
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000004",
        "step-000005",
        "step-000006",
    ]
    with pytest.raises(InvalidRequest):
        keep_last(tmp_path, 0)


def test_weights_are_not_shown(tmp_path):
    assert "tensor" not in repr(checkpoint_at(1))
