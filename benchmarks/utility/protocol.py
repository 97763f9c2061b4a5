"""One fit and its evaluation, in steps that are not done twice."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from eval.features import extractor
from eval.frechet import feature_moments, frechet
from eval.settings import CLASSIFIER_NAMES
from eval.utility import train_and_test
from pipeline.spec.load import load_spec
from pipeline.spec.spec import Spec
from privacy.records import LabelledRecords

from ..machine import describe
from .dp_merf import fit_and_sample

#: What a step writes when it has ended: its result as JSON.
Result = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """What is measured.

    Attributes:
        epochs: of a classifier; 50 in the paper.
        images: synthetic images, the same number of each class; 60,000 in the paper.
        inception: TorchScript file of the 2015 Inception, for the FID; None gives the Fréchet
            distance of the built-in Gabor features alone.
        peer: a peer to fit in place of Umbra, or None.
    """

    epochs: int
    images: int
    inception: Path | None
    peer: str | None


def run(
    path: Path, epsilon: float, repeat: int, out: Path, protocol: Protocol, *, test: bool = True
) -> None:
    """Do what is missing of one repeat: fit, sample, evaluate.

    Args:
        path: the spec; its evaluation section is left out, its holdout is the real test set.
        epsilon: in place of the spec's.
        repeat: number of the repeat, from 0; also the seed of the classifiers.
        out: folder of all results.
        protocol: what is measured.
        test: whether to open the holdout.
    """
    spec = load_spec(path)
    privacy = spec.privacy.model_copy(update={"epsilon": epsilon})
    spec = spec.model_copy(update={"privacy": privacy})
    folder = out / (protocol.peer or "umbra") / path.stem / f"{epsilon:g}" / str(repeat)
    folder.mkdir(parents=True, exist_ok=True)
    fit = _peer if protocol.peer else _umbra
    _once(folder / "fit.json", lambda: fit(spec, folder, protocol))
    if not test:
        return
    synthetic = _synthetic(folder)
    for name in CLASSIFIER_NAMES:
        _once(
            folder / f"{name}-{protocol.epochs}.json",
            lambda name=name: _classify(name, spec, synthetic, repeat, protocol),
        )
    _once(folder / "frechet.json", lambda: _frechet(spec, synthetic, protocol))


def _once(target: Path, step: Callable[[], Result]) -> None:
    if target.exists():
        return
    begun = monotonic()
    result = step()
    result["seconds"] = round(monotonic() - begun, 1)
    temporary = target.with_suffix(".partial")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.rename(target)
    print(f"{target.parent}/{target.stem}: {_short(result)}", flush=True)


def _short(result: Result) -> str:
    keys = ("accuracy", "distance", "epsilon", "seconds")
    return ", ".join(f"{key} {result[key]}" for key in keys if key in result)


def _umbra(spec: Spec, folder: Path, protocol: Protocol) -> Result:
    """Submit the spec without its evaluation, to a home of its own, and export the images."""
    # A home for each attempt: its ledger would rightly refuse to pay twice.
    attempt = 1 + max((int(old.name) for old in folder.glob("home/*")), default=0)
    home = folder / "home" / str(attempt)
    synthesize = spec.synthesize.model_copy(update={"images": protocol.images, "per_class": None})
    without = spec.model_copy(update={"evaluate": None, "synthesize": synthesize})
    written = folder / "spec.yaml"
    written.write_text(without.to_yaml())
    delta, epsilon = spec.privacy.delta, spec.privacy.epsilon
    _command(
        home,
        *("budget", "declare", spec.data.name, "--public"),
        *("--epsilon", str(epsilon), "--delta", str(delta)),
    )
    begun = monotonic()
    submitted = _command(home, "submit", str(written), "--json")
    seconds = round(monotonic() - begun, 1)
    run_id = submitted["run_id"]
    _command(home, "export", run_id, str(folder / "export"), "--format", "npz", "--json")
    return {
        "method": spec.method,
        "data": spec.data.name,
        "epsilon": epsilon,
        "delta": delta,
        "privacy": json.loads((folder / "export" / "privacy.json").read_text()),
        "fit and sampling seconds": seconds,
        "machine": describe(),
        "commit": _commit(),
    }


def _command(home: Path, *arguments: str) -> Result:
    """Run `umbra` on `home` and return what it prints as JSON.

    Raises:
        RuntimeError: the command failed; the message ends with what it wrote to standard error.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", *arguments],
        check=False,
        env={**os.environ, "UMBRA_HOME": str(home)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"umbra {' '.join(arguments)}: exit {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout) if "--json" in arguments else {}


def _peer(spec: Spec, folder: Path, protocol: Protocol) -> Result:
    records = _records(spec.data.source, spec)
    begun = monotonic()
    images, labels = fit_and_sample(
        records.values,
        records.labels,
        classes=len(spec.data.classes),
        epsilon=spec.privacy.epsilon,
        delta=spec.privacy.delta,
        count=protocol.images,
    )
    (folder / "export" / "data").mkdir(parents=True, exist_ok=True)
    np.savez(folder / "export" / "data" / "train.npz", images=images, labels=labels)
    return {
        "method": protocol.peer,
        "data": spec.data.name,
        "epsilon": spec.privacy.epsilon,
        "delta": spec.privacy.delta,
        "fit and sampling seconds": round(monotonic() - begun, 1),
        "machine": describe(),
        "commit": _commit(),
    }


def _records(source: Any, spec: Spec) -> LabelledRecords:
    return source.load(spec.data.size, spec.data.channels, spec.data.classes)


def _synthetic(folder: Path) -> LabelledRecords:
    (path,) = (folder / "export" / "data").glob("*.npz")
    with np.load(path) as arrays:
        return LabelledRecords(arrays["images"], arrays["labels"])


def _test_set(spec: Spec) -> LabelledRecords:
    if spec.data.holdout is None:
        raise ValueError(f"{spec.name}: data.holdout with the real test set is needed, found none")
    return _records(spec.data.holdout.source, spec)


def _classify(
    name: str, spec: Spec, synthetic: LabelledRecords, seed: int, protocol: Protocol
) -> Result:
    test = _test_set(spec)
    result = train_and_test(
        name,
        synthetic.values,
        synthetic.labels,
        test.values,
        test.labels,
        classes=len(spec.data.classes),
        epochs=protocol.epochs,
        seed=seed,
    )
    return {
        "classifier": name,
        "accuracy": result.accuracy,
        "chosen epoch": result.chosen_epoch,
        "validation accuracy": result.validation_accuracy,
        "per class": result.per_class,
    }


def _frechet(spec: Spec, synthetic: LabelledRecords, protocol: Protocol) -> Result:
    name = "inception" if protocol.inception else "gabor"
    extract = extractor(name, spec.data.channels, protocol.inception)
    real = _records(spec.data.source, spec)
    result = frechet(
        name, feature_moments(extract, real.values), feature_moments(extract, synthetic.values)
    )
    return {"features": name, "distance": result.distance}


def _commit() -> str:
    described = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    return subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()
