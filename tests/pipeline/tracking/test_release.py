"""Only public names pass."""

import pytest

from pipeline.tracking.release import Release
from privacy.budget.facts import Shown
from privacy.errors import InvalidRequest

PRIVATE = [
    "loss",
    "train.loss",
    "train_loss",
    "gradient_norm",
    "grad_norm",
    "clip_fraction",
    "batch_size",
    "batch",
    "spent.batch_size",
    "plan.train_loss",
    "plan.batch",
    "eval.loss",
    "eval.mlp.loss",
    "eval.internal.accuracy.loss",
    "eval.memorisation",
    "time.train.loss",
    "rows.private",
    "system/cpu",
    "",
]


@pytest.mark.parametrize("name", PRIVATE)
def test_private_statistics_are_refused_without_their_value(name: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        Release({name: 0.73125})
    assert "0.73125" not in str(error.value)


@pytest.mark.parametrize("section", [Release.plan, Release.spent])
@pytest.mark.parametrize("name", ["loss", "gradient_norm", "batch_size", "clip_fraction"])
def test_no_factory_lets_private_statistics_through(section: object, name: str) -> None:
    with pytest.raises(InvalidRequest):
        section({name: 1.0})


def test_one_bad_name_among_good_ones_refuses_all() -> None:
    with pytest.raises(InvalidRequest):
        Release.spent({"epsilon_rdp": 1.0, "loss": 2.0})


def test_public_names_get_their_prefix() -> None:
    assert dict(Release.plan({"epsilon_prv": 9.5}).values) == {"plan.epsilon_prv": 9.5}
    assert dict(Release.spent({"steps": 3}).values) == {"spent.steps": 3.0}
    assert dict(Release.seconds("train", 2).values) == {"time.train": 2.0}
    assert dict(Release.rows(7).values) == {"rows": 7.0}


def test_evaluation_needs_a_public_reference() -> None:
    values = {"mlp.accuracy": 0.9, "mlp.class.3": 0.8, "frechet_gabor": 4.0, "recall": 0.5}
    assert len(Release.evaluation(values, Shown(holdout=True)).values) == 4
    for shown in (Shown(), Shown(train=True)):
        with pytest.raises(InvalidRequest, match="private reference"):
            Release.evaluation(values, shown)


def test_a_ceiling_needs_public_training_images_too() -> None:
    values = {"mlp.accuracy": 0.9, "mlp.ceiling": 0.95}
    assert len(Release.evaluation(values, Shown(train=True, holdout=True)).values) == 2
    with pytest.raises(InvalidRequest, match="private reference"):
        Release.evaluation(values, Shown(holdout=True))


def test_values_cannot_be_added_later() -> None:
    source = {"steps": 1.0}
    release = Release.spent(source)
    source["loss"] = 1.0
    with pytest.raises(TypeError):
        release.values["loss"] = 1.0  # type: ignore[index]
    assert dict(release.values) == {"spent.steps": 1.0}
