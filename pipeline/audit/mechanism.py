"""`umbra audit mechanism`: the private step that ships, with the settings of a spec or a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.audit.ledger import find_run
from pipeline.audit.run import TrainingRecipe
from pipeline.home import Home
from pipeline.plan import build_method, training_components
from pipeline.progress import Progress
from pipeline.spec import load_spec
from privacy.audit.mechanism import MechanismAudit, StepPath, audit_mechanism
from privacy.dp_sgd import DPSGD
from privacy.errors import InvalidRequest
from privacy.ledger.records import Component
from synth.methods.base import Method
from synth.methods.diffusion import Diffusion

_DEFAULT = DPSGD(records=1000, sampling_probability=0.1, noise_multiplier=1.0, clip_norm=1.0)
_DEFAULT_VIEWS = 4
_SPECS = (".yaml", ".yml")


def audit_step(
    home: Home, subject: str | None, progress: Progress, trials: int | None = None
) -> MechanismAudit:
    """Audit the step on toy data; opens no data set and charges nothing.

    Args:
        home: where runs and their ledger are.
        subject: a spec or a run, whose plan gives q, σ, C and K, or None for a default.
        progress: shown to a person.
        trials: how often the step is run with the canary, and as often without it.

    Raises:
        InvalidRequest: there is no such spec or run, or too few trials.
        SpecError: the spec is not valid.
        IntegrityBroken: the run or the ledger is damaged.
    """
    settings: dict[str, Any] = {} if trials is None else {"trials": trials}
    if subject is None:
        dpsgd, settings["views"] = _DEFAULT, _DEFAULT_VIEWS
    elif Path(subject).is_file() or Path(subject).suffix in _SPECS:
        spec = load_spec(Path(subject))
        dpsgd, shown = _step(build_method(spec), training_components(spec))
        settings |= shown | {"delta": spec.privacy.delta}
    elif run := find_run(home, subject):
        recipe = TrainingRecipe.of(home, run)
        dpsgd, shown = _step(recipe.method, recipe.reservation.plan)
        settings |= shown | {"delta": recipe.delta}
    else:
        raise InvalidRequest(f"{subject} is neither a spec's file nor a run")
    with progress.stage("run the step on toy data"):
        return audit_mechanism(dpsgd, **settings)


def _step(method: Method, components: Sequence[Component]) -> tuple[DPSGD, dict[str, Any]]:
    """Return the step that is charged, its views, and its path with training's gradient engine."""
    if not isinstance(method, Diffusion):
        raise InvalidRequest(
            f"the mechanism audit runs a step of DP-SGD, but the method is {method.name}; "
            "audit a run or a spec of method diffusion"
        )
    settings = {"views": method.train.views, "path": StepPath(engine=method.engine())}
    return method.dpsgd(components), settings
