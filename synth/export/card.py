"""The data set card: `README.md` with the front matter that Hugging Face reads."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synth.data.manifest import Manifest

CARD = "README.md"
_TAGS = ("synthetic", "differential-privacy", "umbra")
_HUGGING_FACE = """\
from datasets import load_dataset

images = load_dataset("FOLDER", split="train")"""
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LARGEST = "1M<n<10M"


@dataclass(frozen=True)
class CardFacts:
    """The public facts on the card that neither the manifest nor `privacy.json` has.

    None of it may come from looking at private data.

    Attributes:
        name: title of the synthetic data set.
        license: a licence identifier of the Hugging Face hub, for example "cc-by-4.0", "other".
        description: a sentence or two on what it shows.
        source: the declared name of the private data set.
        method: how it was made: training, denoiser, sampler.
        version: version of Umbra.
        measures: (name, value) of measures that may be released.
    """

    name: str
    license: str
    description: str
    source: str
    method: str
    version: str
    measures: tuple[tuple[str, str], ...] = ()


def render_card(
    facts: CardFacts,
    manifest: Manifest,
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
    import yaml

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701  Markdown, not HTML: escaping would show
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    header = yaml.safe_dump(
        _front_matter(facts, manifest) | ({} if reading else _features(manifest, class_folders)),
        sort_keys=False,
        allow_unicode=True,
        width=100,
    )
    return environment.get_template("card.md.j2").render(
        front_matter=header,
        facts=facts,
        manifest=manifest,
        privacy=privacy,
        cell=_cell,
        folders=class_folders,
        reading=reading or _HUGGING_FACE,
    )


def _front_matter(facts: CardFacts, manifest: Manifest) -> dict[str, Any]:
    return {
        "pretty_name": " ".join(facts.name.split()),
        "license": facts.license,
        "task_categories": ["image-classification"],
        "size_categories": [next((n for limit, n in _SIZES if manifest.rows < limit), _LARGEST)],
        "tags": list(_TAGS),
    }


def _features(manifest: Manifest, class_folders: Sequence[str] | None) -> dict[str, Any]:
    """Return the front matter by which `datasets` opens the folder."""
    names = dict(enumerate(class_folders or manifest.class_names))
    features = [
        {"name": "image", "dtype": "image"},
        {
            "name": "label",
            "dtype": {"class_label": {"names": {str(k): v for k, v in names.items()}}},
        },
    ]
    pattern = f"{manifest.shards[0].file.split('/')[0]}/**"
    config: dict[str, Any] = {
        "config_name": "default",
        "data_files": [{"split": "train", "path": pattern}],
    }
    if class_folders is not None:
        # Without it `datasets` numbers the classes by the alphabet instead of by our labels.
        config["features"] = copy.deepcopy(features)
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


def _cell(value: object) -> str:
    """Keep a text inside its cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")
