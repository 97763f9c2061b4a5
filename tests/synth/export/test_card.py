import dataclasses
import re

import pytest
import yaml

from pipeline.spec.load import read_yaml
from synth.data.manifest import load_manifest
from synth.export.documents import render_card


def front_matter(text: str) -> dict:
    lines = text.splitlines()
    assert lines[0] == "---"
    return yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))


def test_front_matter_says_what_the_hub_reads(release, card, privacy):
    manifest = load_manifest(release)
    header = front_matter(render_card(card, manifest, privacy))
    assert header["pretty_name"] == "Digits: a twin"
    assert header["license"] == "cc-by-4.0"
    assert header["size_categories"] == ["n<1K"]
    assert header["task_categories"] == ["image-classification"]
    assert header["tags"] == ["synthetic", "differential-privacy", "umbra"]
    (config,) = header["configs"]
    assert config["data_files"] == [{"split": "train", "path": "data/**"}]
    info = header["dataset_info"]
    assert info["features"][1]["dtype"]["class_label"]["names"] == {
        "0": "zero",
        "1": "T-shirt/top",
        "2": "apple",
    }
    assert info["splits"] == [
        {"name": "train", "num_bytes": manifest.bytes, "num_examples": 12},
    ]


def test_the_hubs_own_reader_accepts_it(release, card, privacy):
    hub = pytest.importorskip("huggingface_hub")
    data = hub.DatasetCard(render_card(card, load_manifest(release), privacy)).data
    assert data.license == "cc-by-4.0"
    assert "differential-privacy" in data.tags


@pytest.mark.parametrize(
    ("rows", "category"),
    [
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (60_000, "10K<n<100K"),
        (999_999, "100K<n<1M"),
        (5_000_000, "1M<n<10M"),
    ],
)
def test_size_category_is_that_of_the_hub(release, card, privacy, rows, category):
    manifest = load_manifest(release)
    shard = dataclasses.replace(manifest.shards[0], rows=rows)
    large = dataclasses.replace(manifest, class_counts=(rows, 0, 0), shards=(shard,))
    assert front_matter(render_card(card, large, privacy))["size_categories"] == [category]


def test_the_privacy_statement_is_spelled_out(release, card, privacy):
    text = render_card(card, load_manifest(release), privacy)
    for part in (
        "| rdp | 9.9959 |",
        "| prv | 9.2917 |",
        "1e-05",
        "one image",
        "add/remove with zero-out",
        "ab" * 32,
        "reservation-7",
        "| 1 | T-shirt/top | 3 |",
        "8×8",
        r"| Accuracy \| public test set | 0.91 |",
    ):
        assert part in text


def test_texts_from_a_spec_cannot_break_out_of_the_front_matter(release, card, privacy):
    nasty = dataclasses.replace(card, name='x: "y"\n---\nlicense: mit')
    text = render_card(nasty, load_manifest(release), privacy)
    header = front_matter(text)
    assert header["pretty_name"] == 'x: "y" --- license: mit'
    assert header["license"] == "cc-by-4.0"
    assert header["dataset_info"]
    assert '\n# x: "y" --- license: mit\n' in text


HOSTILE = (
    "<script>alert(1)</script>",
    "![x](https://a)",
    "a|b",
    "`a`",
    "*b*",
    "a\nb",
    "$x$",
    "# h",
)


def test_no_text_is_html_or_markdown_in_the_card(make_release, card, privacy):
    release = make_release(names=HOSTILE, counts=(1,) * len(HOSTILE))
    texts = {
        name: " ".join(HOSTILE) for name in ("name", "description", "source", "method", "version")
    }
    hostile = dataclasses.replace(card, **texts, measures=tuple((name, name) for name in HOSTILE))
    statement = privacy | {"unit": HOSTILE[0], "neighbouring_relation": HOSTILE[1]}
    statement["attack"] = [{"meaning": " ".join(HOSTILE)}]
    text = render_card(hostile, load_manifest(release), statement)
    body = text.split("\n---\n", 1)[1]
    assert "<" not in body
    for unsafe in ("[x]", "`a`", "*b*", "$x$", " # h", "_i_", "a|b"):
        assert unsafe not in body
    assert r"| 0 | &lt;script&gt;alert(1)&lt;/script&gt; | 1 |" in body
    assert r"| 2 | a\|b | 1 |" in body
    assert r"| 5 | a b | 1 |" in body
    table = [line for line in body.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) in (3, 4) for line in table)


@pytest.mark.parametrize("dialect", ["1.1", "1.2"])
def test_class_names_load_back_from_the_front_matter(make_release, card, privacy, dialect):
    names = ("08", "1e3", "no", "y", "2024-01-01", "null", "0x1F", "a\x85b", "~", "é", "- a", "#")
    release = make_release(names=names, counts=(1,) * len(names))
    header = front_matter(render_card(card, load_manifest(release), privacy))
    if dialect == "1.2":
        text = render_card(card, load_manifest(release), privacy)
        header = read_yaml(text.split("---\n")[1], "README.md").value
    label = header["dataset_info"]["features"][1]["dtype"]["class_label"]["names"]
    assert list(label.values()) == list(names)
    assert list(label) == [str(number) for number in range(len(names))]
