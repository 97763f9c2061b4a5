import pytest
import torch

from pipeline.stages.train import _skipped
from privacy.errors import IntegrityBroken
from synth.checkpoint import Checkpoint, save


@pytest.fixture
def checkpoints(tmp_path):
    for step in (2, 4):
        weights = {"w": torch.full((2,), float(step))}
        save(tmp_path, Checkpoint(step, 1, "dp-sgd", weights, weights, {}, "1:ab"))
    return tmp_path


def _damage(folder, step):
    with (folder / f"step-{step:06d}" / "model.safetensors").open("ab") as file:
        file.write(b"x")


def test_sound_checkpoints_need_no_word(checkpoints, tmp_path):
    assert _skipped(checkpoints) == _skipped(tmp_path / "none") == ""


def test_a_damaged_newest_is_told_and_passed_over(checkpoints):
    _damage(checkpoints, 4)
    assert "step-000004" in _skipped(checkpoints) and "step-000002" not in _skipped(checkpoints)


def test_with_no_sound_one_left_training_does_not_begin_anew_by_itself(checkpoints):
    _damage(checkpoints, 2)
    _damage(checkpoints, 4)
    with pytest.raises(IntegrityBroken, match="Restore one from a backup") as broken:
        _skipped(checkpoints)
    assert broken.value.exit_code == 4
    assert "step-000002" in str(broken.value) and "step-000004" in str(broken.value)
