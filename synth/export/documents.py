"""The documents of an export: `README.md`, the data set card, and `privacy.json`, the statement.

`privacy.json` has the sha256 of `manifest.json`, which has that of every other file. The ledger has
recorded the sha256 of the manifest too: comparing the two is the ledger audit's task.
"""

import copy
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from privacy.errors import IntegrityBroken, InvalidRequest
from synth.data import manifest as manifests
from synth.storage import json_bytes, yaml_text

CARD = "README.md"
PRIVACY = "privacy.json"
#: Fields of `privacy.json` and the types of their values.
FIELDS: dict[str, type] = {
    # What one unit of privacy is, for example "one image".
    "unit": str,
    # For example "add/remove with zero-out".
    "neighbouring_relation": str,
    "delta": float,
    # By accountant, rounded up; null for a void run.
    "epsilon": dict,
    # Raw parameters of everything charged, never only an epsilon.
    "mechanisms": list,
    "ledger_id": str,
    # Of the ledger's last row, so that truncation shows.
    "head_hash": str,
    "reservation": str,
    # True where a seed made the noise reproducible.
    "void": bool,
}
_TAGS = ("synthetic", "differential-privacy", "umbra")
_HUGGING_FACE = """\
from datasets import load_dataset

images = load_dataset("FOLDER", split="train")"""
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LARGEST = "1M<n<10M"
# Begins emphasis, code, links, images, formulas or a cell.
_MARKDOWN = re.compile(r"[\\`*_\[\]|~$!#]")


@dataclass(frozen=True)
class CardFacts:
    """The public facts on the card that neither the manifest nor `privacy.json` has.

    None of it may come from looking at private data.
    """

    #: Title of the synthetic data set.
    name: str
    #: A licence identifier of the Hugging Face hub, for example "cc-by-4.0", "other".
    license: str
    #: A sentence or two on what it shows.
    description: str
    #: The declared name of the private data set.
    source: str
    #: How it was made: training, denoiser, sampler.
    method: str
    #: Version of Umbra.
    version: str
    #: (name, value) of measures that may be released.
    measures: tuple[tuple[str, str], ...] = ()
    #: What the measures disclose of private images, beside what the synthetic images do.
    disclosure: str = ""


def render_card(
    facts: CardFacts,
    manifest: manifests.Manifest,
    privacy: Mapping[str, Any],
    class_folders: Sequence[str] | None = None,
    reading: str | None = None,
) -> str:
    """Return the text of `README.md` for an export.

    Args:
        facts: what the next two do not say.
        manifest: of the export.
        privacy: its privacy statement.
        class_folders: folders of label 0, 1, … where the images are files in such folders.
        reading: a Python program that opens the data, with FOLDER for the export; None where
            `datasets.load_dataset` does by the front matter alone.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        # Markdown, and not HTML, is what texts are escaped for: all but those marked as safe.
        autoescape=False,  # noqa: S701
        finalize=_escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    header = yaml_text(
        _front_matter(facts, manifest) | ({} if reading else _features(manifest, class_folders))
    )
    return environment.get_template("card.md.j2").render(
        front_matter=header,
        facts=facts,
        manifest=manifest,
        privacy=privacy,
        folders=class_folders,
        reading=reading or _HUGGING_FACE,
    )


def _front_matter(facts: CardFacts, manifest: manifests.Manifest) -> dict[str, Any]:
    return {
        "pretty_name": " ".join(facts.name.split()),
        "license": facts.license,
        "task_categories": ["image-classification"],
        "size_categories": [next((n for limit, n in _SIZES if manifest.rows < limit), _LARGEST)],
        "tags": list(_TAGS),
    }


def _features(manifest: manifests.Manifest, class_folders: Sequence[str] | None) -> dict[str, Any]:
    """Return the front matter by which `datasets` opens the folder."""
    names = {str(k): v for k, v in enumerate(class_folders or manifest.class_names)}
    features = [
        {"name": "image", "dtype": "image"},
        {"name": "label", "dtype": {"class_label": {"names": names}}},
    ]
    pattern = f"{manifest.shards[0].file.split('/')[0]}/**"
    config: dict[str, Any] = {
        "config_name": "default",
        "data_files": [{"split": "train", "path": pattern}],
    }
    if class_folders is not None:
        # Without it `datasets` numbers the classes by the alphabet instead of by our labels, and
        # leaves the labels out where there is one class.
        config |= {"features": copy.deepcopy(features), "drop_labels": False}
    split = {"name": "train", "num_bytes": manifest.bytes, "num_examples": manifest.rows}
    return {
        "configs": [config],
        "dataset_info": {
            "features": features,
            "splits": [split],
            "download_size": manifest.bytes,
            "dataset_size": manifest.bytes,
        },
    }


def _escape(value: object) -> str:
    """Return Markdown that shows a text as it is, on one line, also inside a table."""
    if isinstance(value, Markup):
        return value
    line = html.escape(" ".join(str(value).split()), quote=False)
    return _MARKDOWN.sub(r"\\\g<0>", line)


def may_leave(*, void: bool, allowed: bool = False) -> bool:
    """Return whether anything made by a run may leave it, of a void one by an explicit flag alone.

    Every exit asks here: exports, and all that goes to MLflow.
    """
    return allowed or not void


def checked_statement(privacy: Mapping[str, Any], allow_void: bool) -> dict[str, Any]:
    """Return a copy of the statement `privacy` if it is complete, finite and JSON.

    Unknown fields are kept; the epsilons of a void statement become None.

    Raises:
        InvalidRequest: a field is missing or of a wrong type, a number is not finite, or the
            statement is void and `allow_void` was not given.
    """
    for name, kind in FIELDS.items():
        if name not in privacy:
            raise InvalidRequest(f"{PRIVACY} needs {name!r}")
        if not isinstance(privacy[name], kind):
            found = type(privacy[name]).__name__
            raise InvalidRequest(f"{PRIVACY}: {name!r} must be {kind.__name__}, found {found}")
    statement = dict(privacy)
    if not statement["void"]:
        _check_guarantee(statement)
    elif not may_leave(void=True, allowed=allow_void):
        raise InvalidRequest(
            "the run is void of privacy: a seed made its noise reproducible, so the images may "
            "give the private records away; run it without a seed, or allow a void export"
        )
    else:
        # A number that guarantees nothing would be quoted all the same.
        statement["epsilon"] = dict.fromkeys(statement["epsilon"])
    try:
        json.dumps(statement, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{PRIVACY} must be JSON with finite numbers: {error}") from error
    return statement


def read_statement(folder: Path) -> dict[str, Any]:
    """Return the privacy statement of the export in `folder`.

    Raises IntegrityBroken if it is missing, not as it was written, or incomplete.
    """
    try:
        data = (folder / PRIVACY).read_bytes()
        statement = json.loads(data)
        canonical = json_bytes(statement) == data
        checked_statement(statement, allow_void=True)
    except FileNotFoundError:
        raise IntegrityBroken(f"missing: {PRIVACY}") from None
    except (ValueError, TypeError, AttributeError, InvalidRequest) as error:
        raise IntegrityBroken(f"changed: {PRIVACY} cannot be understood: {error}") from error
    if not canonical:
        raise IntegrityBroken(f"changed: {PRIVACY} is not as it was written")
    return dict(statement)


def verify_export(folder: Path) -> list[str]:
    """Recompute the hash of every file of the export in `folder`.

    Returns one sentence a finding: missing, extra or changed files, wrong numbers of rows, an
    incomplete statement; none if all is well.
    """
    findings = []
    try:
        if read_statement(folder).get("manifest_sha256") != manifests.manifest_sha256(folder):
            findings.append(
                f"changed: {manifests.MANIFEST} does not have the sha256 that {PRIVACY} states"
            )
    except IntegrityBroken as error:
        findings.append(str(error))
    try:
        manifest = manifests.load_manifest(folder)
    except IntegrityBroken as error:
        return [*findings, str(error)]
    extra = manifests.unlisted(folder, folder, manifest, ignore=[PRIVACY])
    return [*findings, *manifests.differences(folder, manifest), *extra]


def _check_guarantee(statement: Mapping[str, Any]) -> None:
    if not 0 < statement["delta"] < 1:
        raise InvalidRequest(f"{PRIVACY}: delta must lie between 0 and 1")
    epsilons = statement["epsilon"]
    if not epsilons or not statement["mechanisms"]:
        raise InvalidRequest(f"{PRIVACY} needs an epsilon and the mechanisms it follows from")
    for name, epsilon in epsilons.items():
        number = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
        if not number or not (math.isfinite(epsilon) and epsilon >= 0):
            raise InvalidRequest(f"{PRIVACY}: epsilon by {name!r} must be a finite number >= 0")
