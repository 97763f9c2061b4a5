"""The model that MLflow keeps samples what it is asked for."""

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.models import build_denoiser, build_guided, build_sampler
from pipeline.spec import Spec
from pipeline.tracking.tracker import TrackedRun, save_sampling_model
from privacy.errors import IntegrityBroken, InvalidRequest
from synth.data.shards import to_uint8
from synth.origin import Origin, seal_tensors


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, spec: Spec) -> Path:
    torch.manual_seed(3)
    denoiser = build_denoiser(spec)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            # Fresh blocks end in zeros; without this every class would look the same.
            parameter.add_(0.05 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("trained") / "weights.safetensors"
    save_file(denoiser.state_dict(), path)
    return path


@pytest.fixture
def weights(release: Path, trained: Path) -> Path:
    return Path(shutil.copy(trained, release))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, trained: Path, spec: Spec) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_sampling_model(folder, trained, spec)
    return folder


@pytest.fixture(scope="module")
def loaded(saved: Path) -> mlflow.pyfunc.PyFuncModel:
    return mlflow.pyfunc.load_model(str(saved))


@pytest.fixture
def tracking_uri(uri: str) -> Iterator[str]:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield uri
    mlflow.set_tracking_uri(before)


def _pixels(answer: pd.DataFrame) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(png))) for png in answer["image"]])


def test_it_returns_the_requested_number_of_each_class(loaded: mlflow.pyfunc.PyFuncModel) -> None:
    answer = loaded.predict(pd.DataFrame({"label": [2, 0], "count": [5, 1]}))
    assert list(answer.columns) == ["image", "label", "class_name"]
    assert list(answer["label"]) == [2] * 5 + [0]
    assert list(answer["class_name"]) == ["two"] * 5 + ["zero"]
    pixels = _pixels(answer)
    assert (pixels.shape, pixels.dtype) == ((6, 8, 8), np.uint8)
    assert len({image.tobytes() for image in pixels}) == 6


def test_is_the_sampler_of_the_spec(
    loaded: mlflow.pyfunc.PyFuncModel, trained: Path, spec: Spec
) -> None:
    from safetensors.torch import load_file

    denoiser = build_denoiser(spec)
    denoiser.load_state_dict(load_file(trained))
    drawn = build_sampler(spec).sample(
        build_guided(spec, denoiser.eval()),
        torch.full((3,), 1),
        (1, 8, 8),
        torch.Generator().manual_seed(11),
    )
    answer = loaded.predict(pd.DataFrame({"label": [1], "count": [3], "seed": [11]}))
    assert np.array_equal(_pixels(answer), to_uint8(drawn)[..., 0])


def test_seed_repeats_and_none_does_not(loaded: mlflow.pyfunc.PyFuncModel) -> None:
    seeded = pd.DataFrame({"label": [0], "count": [2], "seed": [4]})
    free = pd.DataFrame({"label": [0], "count": [2]})
    assert np.array_equal(_pixels(loaded.predict(seeded)), _pixels(loaded.predict(seeded)))
    assert not np.array_equal(_pixels(loaded.predict(free)), _pixels(loaded.predict(free)))


def test_a_request_for_no_images(loaded: mlflow.pyfunc.PyFuncModel) -> None:
    assert len(loaded.predict(pd.DataFrame({"label": [0], "count": [0]}))) == 0


@pytest.mark.parametrize(("label", "count"), [(3, 1), (-1, 1), (0, -1), (0, 10**9)])
def test_invalid_requests(loaded: mlflow.pyfunc.PyFuncModel, label: int, count: int) -> None:
    with pytest.raises(InvalidRequest):
        loaded.predict(pd.DataFrame({"label": [label], "count": [count]}))


def test_saved_model_names_no_data_source(saved: Path) -> None:
    files = {p.name: p for p in saved.rglob("*") if p.is_file()}
    recipe = json.loads(files["sampling.json"].read_text())
    assert set(recipe) <= {"method", "data", "model", "synthesize", "mark"}
    assert set(recipe["data"]) == {"size", "channels", "classes"}
    assert not [name for name in files if name.endswith((".pkl", ".pickle"))]
    assert "umbra-synth==" in files["requirements.txt"].read_text()


def test_logged_model_loads_by_uri(
    run: TrackedRun, weights: Path, spec: Spec, tracking_uri: str
) -> None:
    uri = run.log_sampling_model(weights, spec)
    answer = mlflow.pyfunc.load_model(uri).predict(pd.DataFrame({"label": [1], "count": [2]}))
    assert len(answer) == 2
    outputs = run.client.get_run(run.id).outputs.model_outputs
    assert [f"models:/{output.model_id}" for output in outputs] == [uri]
    assert run.client.get_logged_model(uri.removeprefix("models:/")).status == "READY"


def test_private_weights_are_refused(run: TrackedRun, weights: Path, spec: Spec) -> None:
    private = run._release.parent / "internal" / "weights.safetensors"
    private.write_bytes(weights.read_bytes())
    with pytest.raises(InvalidRequest, match="release"):
        run.log_sampling_model(private, spec)


def test_saving_is_quiet(
    tmp_path: Path,
    trained: Path,
    spec: Spec,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    save_sampling_model(tmp_path / "quiet", trained, spec)
    assert capfd.readouterr() == ("", "")
    assert not [w for w in recwarn if "mlflow" in w.filename and w.category is UserWarning]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory, trained: Path, spec: Spec) -> Path:
    """A model of weights that carry what paid for them; the run was void."""
    folder = tmp_path_factory.mktemp("sealed")
    origin = Origin("run-1", "r-1", "ab" * 32, True, bytes(32))
    (folder / "weights").write_bytes(seal_tensors(trained.read_bytes(), origin))
    save_sampling_model(folder / "model", folder / "weights", spec)
    return folder / "model"


def test_the_model_names_what_paid_for_it_and_that_it_is_void(sealed: Path) -> None:
    (recipe,) = sealed.rglob("sampling.json")
    mark = json.loads(recipe.read_text())["mark"]
    (weights,) = sealed.rglob("weights")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert mark == {
        "run": "run-1",
        "reservation": "r-1",
        "spec": "ab" * 32,
        "void": True,
        "weights": digest,
    }
    answer = mlflow.pyfunc.load_model(str(sealed)).predict(
        pd.DataFrame({"label": [0], "count": [1]})
    )
    assert len(answer) == 1


def test_other_weights_in_the_model_are_refused(
    sealed: Path, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(sealed, tmp_path / "model")
    (weights,) = (tmp_path / "model").rglob("weights")
    shutil.copy(trained, weights)
    with pytest.raises(IntegrityBroken, match="not the weights that this model was logged with"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))
