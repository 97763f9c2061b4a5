"""The model as MLflow serves it: returns n images of class k.

MLflow keeps a copy of this file beside the weights and runs it when the model is loaded ("models
from code": nothing is pickled), so it imports nothing beside it but Umbra.

A request is a table with columns `label` (integer), `count`, and optionally `seed`. The response
has one row per image, in the same order: `image` (PNG, bytes), `label`, `class_name`. Sampling is
post-processing of private weights: any number of requests costs no privacy.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, Schema

from pipeline.models import ImageSampler, Recipe
from privacy.errors import IntegrityBroken, InvalidRequest
from synth.data.shards import encode_png
from synth.origin import weights_mark

WEIGHTS, SAMPLING = "weights", "sampling"
# One request may not exceed what a machine can hold as PNGs in memory.
MAX_IMAGES = 100_000

_REQUEST = [ColSpec("long", name, required=name != "seed") for name in ("label", "count", "seed")]
_IMAGE = [ColSpec("binary", "image"), ColSpec("long", "label"), ColSpec("string", "class_name")]
SIGNATURE = ModelSignature(inputs=Schema(_REQUEST), outputs=Schema(_IMAGE))


class SamplingModel(PythonModel):
    """Samples labelled images from released weights."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build network and sampler from the artifacts `weights` and `sampling`."""
        text = Path(context.artifacts[SAMPLING]).read_text(encoding="utf-8")
        self.recipe = Recipe.model_validate_json(text)
        weights = Path(context.artifacts[WEIGHTS])
        if weights_mark(weights.read_bytes()) != self.recipe.mark:
            raise IntegrityBroken(
                f"{weights} are not the weights that this model was logged with: their mark in "
                f"{SAMPLING}.json is another. Load the model from where it was logged"
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.sampler = ImageSampler(self.recipe, weights, device)

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Sample the images of a request.

        Args:
            context: unused; the weights are loaded once.
            model_input: columns `label`, `count` and, to make the images reproducible, `seed`.
            params: unused.

        Returns:
            A table with columns `image` (PNG bytes), `label`, `class_name`.

        Raises:
            InvalidRequest: a label is unknown, or a count negative or too large.
        """
        requests = [self._parse(row) for row in model_input.to_dict("records")]
        if sum(count for _, count, _ in requests) > MAX_IMAGES:
            raise InvalidRequest(f"at most {MAX_IMAGES} images a request: split it")
        classes = self.recipe.data.classes
        rows = [
            {"image": encode_png(image), "label": label, "class_name": classes[label]}
            for label, count, seed in requests
            for image in self._images(label, count, seed)
        ]
        return pd.DataFrame(rows, columns=[column.name for column in _IMAGE])

    def _parse(self, row: dict[Any, Any]) -> tuple[int, int, int | None]:
        label, count, classes = int(row["label"]), int(row["count"]), self.recipe.data.classes
        if not 0 <= label < len(classes):
            raise InvalidRequest(f"there is no class {label}: expected 0 to {len(classes) - 1}")
        if count < 0:
            raise InvalidRequest(f"a count of 0 or more was expected, found {count}")
        seed = row.get("seed")
        return label, count, None if seed is None or pd.isna(seed) else int(seed)

    def _images(self, label: int, count: int, seed: int | None) -> Iterator[np.ndarray]:
        """Yield `count` images uint8 [H, W, C], drawn batch after batch from one generator."""
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        for images in self.sampler.draw(torch.full((count,), label), generator):
            yield from images


set_model(SamplingModel())
