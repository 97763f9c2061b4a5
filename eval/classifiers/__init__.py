"""The three classifiers by which downstream utility is measured."""

from eval.classifiers.base import Architecture
from eval.classifiers.cnn import cnn
from eval.classifiers.logistic_regression import logistic_regression
from eval.classifiers.mlp import mlp

CLASSIFIERS: dict[str, Architecture] = {
    "logreg": logistic_regression,
    "mlp": mlp,
    "cnn": cnn,
}


def architecture(name: str) -> Architecture:
    """The architecture registered under `name`.

    Raises:
        ValueError: no such name.
    """
    if name not in CLASSIFIERS:
        raise ValueError(f"classifier: expected one of {', '.join(CLASSIFIERS)}, found {name!r}")
    return CLASSIFIERS[name]
