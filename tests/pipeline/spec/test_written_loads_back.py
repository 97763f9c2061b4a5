"""A spec that was accepted is written so that every reader of YAML reads it back as it was."""

from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.spec import Spec, load_spec, parse_spec

HOSTILE = (
    *("08", "07", "0o17", "0x1F", "1_000", "1e3", "1E3", "1.5", ".5", "5.", "+1", "-0", "1:30"),
    *("no", "No", "yes", "on", "off", "y", "N", "true", "False", "null", "Null", "~", "nan"),
    *(".nan", ".inf", "-.INF", "2024-01-01", "2024-01-01 10:00:00", "=", "<<", "- a", "? a"),
    *("a: b", "a #b", "#a", "'a'", '"a"', "&a", "*a", "!a", "!!int", "%a", "@a", "`a", "|", ">"),
    *("[a]", "{a}", "a,b", "---", "...", " a", "a ", "a\\n", "{{ a }}", "é", "e\u0301", "漢", "😀"),
)
CLEAN = ("08", "1e3", "no", "2024-01-01", "0x1f", "null", "-x", "true", "1", "-", "0o17", "y")
printable = st.text(min_size=1, max_size=20).filter(str.isprintable)
texts = st.sampled_from(HOSTILE) | printable
# A folder may have any name but this.
paths = st.text(min_size=1, max_size=20).filter(lambda text: "\0" not in text)
paths = st.sampled_from(("a\x85b", "a\u2028b", "a\nb", "a\tb", "\ufeffa", "a\x7f", "08")) | paths


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from([name for name in CLEAN if name.strip("-")]),
    dataset=st.sampled_from([name for name in CLEAN if name[0] != "-"]),
    classes=st.lists(texts, min_size=1, max_size=6, unique=True),
    unit=texts,
    path=paths,
)
def test_hostile_texts_load_back(name, dataset, classes, unit, path):
    record = {
        "name": name,
        "data": {
            "name": dataset,
            "source": {"kind": "folder", "path": path},
            "records": 1438,
            "size": 8,
            "channels": 1,
            "classes": classes,
        },
        "privacy": {"epsilon": 10, "delta": 1e-4, "unit": unit},
        "model": {"attention": [4]},
        "train": {"batch": 256, "steps": 400, "views": 4},
        "synthesize": {"images": 100},
    }
    spec = Spec.model_validate(record)
    written = spec.to_yaml()
    assert parse_spec(written, folder=Path("/"), kept=True).data.classes == tuple(classes)
    again = parse_spec(written, folder=Path(), kept=True)
    assert (again.name, again.data.name, again.privacy.unit) == (name, dataset, unit)
    # A reader of YAML 1.1 finds the same.
    assert yaml.safe_load(written) == spec.model_dump(mode="json")


@settings(max_examples=50, deadline=None)
@given(path=paths.filter(lambda path: not path.startswith("~")))
def test_a_spec_on_disk_is_the_one_that_was_accepted(path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spec")
    first = parse_spec(
        """
name: digits
data: {name: digits, source: {kind: folder, path: x}, records: 1438, size: 8, channels: 1,
       classes: ["08", "no"]}
privacy: {epsilon: 10, delta: 1e-4}
model: {attention: [4]}
train: {batch: 256, steps: 400, views: 4}
synthesize: {images: 100}
""",
        folder=folder,
    )
    source = first.data.source.model_copy(update={"path": folder / path})
    spec = first.model_copy(update={"data": first.data.model_copy(update={"source": source})})
    (folder / "spec.yaml").write_text(spec.to_yaml(), encoding="utf-8")
    again = load_spec(folder / "spec.yaml", kept=True)
    assert again == spec
    assert again.sha256() == spec.sha256()
