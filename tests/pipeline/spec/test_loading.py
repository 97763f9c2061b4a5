import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.spec import Spec, SpecError, load_spec, parse_spec


def test_defaults_are_those_of_the_paper(text):
    spec = parse_spec(text)
    assert (spec.model.config, spec.model.p_mean, spec.model.p_std) == ("edm", -1.2, 1.2)
    assert spec.model.multipliers == (1, 2, 2)
    assert (spec.train.learning_rate, spec.train.ema) == (3e-4, 0.999)
    assert (spec.privacy.clip_norm, spec.privacy.calibration) == (1.0, "rdp")
    assert spec.privacy.seed is None
    assert (spec.synthesize.sampler, spec.synthesize.guidance) == ("churn", 0.0)
    assert spec.evaluate.classifiers == ("logreg", "mlp", "cnn")
    assert spec.evaluate.learning_rate == 3e-4
    assert spec.data.holdout.public is True


def test_a_holdout_is_private_unless_said_otherwise(edited):
    assert parse_spec(edited(("    public: true\n", ""))).data.holdout.public is False


def test_written_out_it_loads_back_equal(text, tmp_path):
    spec = parse_spec(text, folder=tmp_path)
    again = parse_spec(spec.to_yaml(), folder=Path("/elsewhere"))
    assert again == spec
    assert again.sha256() == spec.sha256()


@pytest.mark.parametrize(
    "change",
    [
        ("  attention: [4]", "  attention: [4]\n  config: v"),
        ("  images: 100", "  images: 100\n  sampler: ddim"),
        ("  images: 100", "  per_class: [5, 0, 7]"),
        ("  steps: 400", "  epochs: 3"),
        ("  delta: 1e-4", "  delta: 1e-4\n  seed: 3"),
    ],
)
def test_every_variant_loads_back_equal_and_has_its_own_hash(edited, text, change):
    spec = parse_spec(edited(change))
    assert parse_spec(spec.to_yaml()) == spec
    assert spec.sha256() != parse_spec(text).sha256()


def test_the_hash_is_of_the_meaning_and_not_of_the_text(edited, text):
    same = edited(
        ("1e-4", "0.0001 # a comment"),
        ("  epsilon: 10", "  epsilon: 10.0\n  clip_norm: 1"),
        ("[4]", "\n  - 4"),
    )
    assert parse_spec(same).sha256() == parse_spec(text).sha256()


def test_canonical_json_is_one_sorted_line(text):
    line = parse_spec(text).canonical_json()
    assert "\n" not in line
    assert line == json.dumps(json.loads(line), sort_keys=True, separators=(",", ":"))


def test_relative_paths_start_at_the_specs_folder(edited, tmp_path, monkeypatch):
    folder = tmp_path / "specs"
    folder.mkdir()
    source = "    kind: idx\n    images: data/x.gz\n    labels: /abs/y.gz"
    changed = edited(
        ("    kind: digits\n", source + "\n"),
        ("{kind: digits, split: holdout}", "{kind: folder, path: ../held}"),
        ("  epochs: 3\n", "  features: inception.pt\n"),
    )
    (folder / "my.yaml").write_text(changed)
    monkeypatch.chdir(tmp_path)
    spec = load_spec(Path("specs/my.yaml"))
    assert spec.data.source.images == folder / "data/x.gz"
    assert spec.data.source.labels == Path("/abs/y.gz")
    assert spec.data.holdout.source.path == folder / "../held"
    assert spec.evaluate.features == folder / "inception.pt"


def test_nothing_can_be_changed(text):
    spec = parse_spec(text)
    with pytest.raises(ValidationError):
        spec.privacy.epsilon = 100.0


def test_the_model_checks_itself_without_a_file(text):
    raw = parse_spec(text).model_dump()
    raw["privacy"]["delta"] = 0.5
    with pytest.raises(ValidationError, match=r"privacy\.delta"):
        Spec.model_validate(raw)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: path.write_bytes(b"name: \xff\xfe"), "other bytes"),
        (lambda path: path.write_text("# only a comment\n"), "an empty file"),
        (lambda path: path.write_text("- a list\n"), "something else"),
    ],
)
def test_a_file_that_is_no_spec(tmp_path, make, found):
    path = tmp_path / "my.yaml"
    make(path)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert str(path) in str(caught.value)
    assert found in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("encode", "sound"),
    [
        (lambda text: b"\xef\xbb\xbf" + text.encode(), True),
        (lambda text: text.replace("\n", "\r\n").encode(), True),
        (lambda text: text.encode("utf-16"), False),
        (lambda text: text.replace("zero", "z\xe9ro").encode("latin-1"), False),
        (lambda text: b"a:\n\tb: 1", False),
        (lambda text: text.encode() + b"---\nb: 2\n", False),
        (lambda text: b"", False),
    ],
    ids=["BOM", "Windows line ends", "UTF-16", "Latin-1", "tab", "two documents", "empty"],
)
def test_encodings(text, tmp_path, encode, sound):
    path = tmp_path / "spec.yaml"
    path.write_bytes(encode(text))
    if sound:
        assert load_spec(path) == parse_spec(text, folder=tmp_path)
    else:
        with pytest.raises(SpecError):
            load_spec(path)


@pytest.mark.parametrize("written", ["08", "010", "1e3", "0x1F", "1.50"])
def test_a_hint_repeats_what_was_written(complaints, written):
    (complaint,) = complaints(("[zero, one, two]", f"[zero, {written}, two]"))
    assert complaint.endswith(f'(as text it is written "{written}")')


class TestSubmitted:
    """What a new run is refused for, while a spec that a run keeps stays readable."""

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (("name: digits-demo", "name: -x"), "my.yaml:1: name: expected a name that begins"),
            (("[zero, one, two]", "[only]"), "evaluate: expected no section"),
            (("images: 100", "images: 6"), "synthesize: expected at least 10 images"),
            (("epochs: 3", "neighbours: 99"), "synthesize: expected at least 101 images"),
        ],
    )
    def test_is_refused_with_its_line(self, complaints, edited, change, words):
        (complaint,) = complaints(change)
        assert words in complaint
        assert parse_spec(edited(change), kept=True)

    def test_few_images_without_evaluation_are_as_good_as_many(self, edited):
        assert parse_spec(edited(("images: 100", "images: 1"), ("evaluate:\n  epochs: 3\n", "")))
