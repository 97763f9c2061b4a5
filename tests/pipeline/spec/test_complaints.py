"""Every complaint in full: file, line, field, expected, found."""

import pytest

from pipeline.spec.load import Problem, SpecError
from synth.samplers import DIRECT, SAMPLERS
from synth.settings import PRECONDITIONINGS, format_path


def one_of(registry):
    """The registries grow, and complaints with them."""
    return "one of " + ", ".join(f"'{name}'" for name in registry)


SOURCE_KINDS = ("digits", "folder", "idx", "npz", "parquet")
ONE_PROBLEM = {
    "unknown key": (
        ("  epsilon: 10", "  epsilon: 10\n  epsilno: 3"),
        "my.yaml:15: privacy.epsilno: expected one of epsilon, delta, clip_norm, calibration, "
        "unit, records_per_unit, seed, found unknown key 'epsilno' (did you mean epsilon?)",
    ),
    "unknown key in a union": (
        ("split: holdout", "splitt: holdout"),
        "my.yaml:11: data.holdout.source.splitt: expected one of kind, split, found unknown key "
        "'splitt' (did you mean split?)",
    ),
    "missing key": (
        ("  delta: 1e-4\n", ""),
        "my.yaml:13: privacy.delta: expected a value, for it is required, found nothing",
    ),
    "unknown source": (
        ("    kind: digits\n", "    kind: digit\n"),
        f"my.yaml:5: data.source.kind: expected {one_of(SOURCE_KINDS)}, found 'digit' "
        "(did you mean digits?)",
    ),
    "no kind of source": (
        ("    kind: digits\n", "    split: train\n"),
        "my.yaml:4: data.source.kind: expected a value, for it is required, found nothing",
    ),
    "nan": (
        ("epsilon: 10", "epsilon: .nan"),
        "my.yaml:14: privacy.epsilon: expected a finite number, found nan",
    ),
    "infinity": (
        ("epsilon: 10", "epsilon: .inf"),
        "my.yaml:14: privacy.epsilon: expected a finite number, found inf",
    ),
    "negative": (
        ("epsilon: 10", "epsilon: -1"),
        "my.yaml:14: privacy.epsilon: expected a number greater than 0, found -1",
    ),
    "subnormal": (
        ("delta: 1e-4", "delta: 1e-310"),
        "my.yaml:15: privacy.delta: expected a number of at least 2.23e-308, found 1e-310",
    ),
    "delta of 1 or more": (
        ("delta: 1e-4", "delta: 1"),
        "my.yaml:15: privacy.delta: expected a number below 1, found 1",
    ),
    "delta of 1/N or more": (
        ("delta: 1e-4", "delta: 1e-3"),
        "my.yaml:15: privacy.delta: expected a number below 1/records = 1/1438 = 0.000695, "
        "found 0.001",
    ),
    "text for a number": (
        ("epsilon: 10", "epsilon: ten"),
        "my.yaml:14: privacy.epsilon: expected a number, found 'ten'",
    ),
    "a quoted number": (
        ("epsilon: 10", "epsilon: '10'"),
        "my.yaml:14: privacy.epsilon: expected a number, found '10'",
    ),
    "a number for text": (
        ("classes: [zero, one, two]", "classes: [zero, 1, two]"),
        'my.yaml:9: data.classes[1]: expected text, found 1 (as text it is written "1")',
    ),
    "part of a step": (
        ("steps: 400", "steps: 400.0"),
        "my.yaml:20: train.steps: expected a whole number, found 400.0",
    ),
    "a truth for a number": (
        ("steps: 400", "steps: true"),
        "my.yaml:20: train.steps: expected a whole number, found true",
    ),
    "a class twice": (
        ("classes: [zero, one, two]", "classes: [zero, one, zero]"),
        "my.yaml:9: data.classes[2]: expected every class once, found 'zero' again",
    ),
    "a class of two lines": (
        ("classes: [zero, one, two]", 'classes: ["ze\\nro", one, two]'),
        "my.yaml:9: data.classes[0]: expected one line of printable text, found 'ze\\nro'",
    ),
    "no classes": (
        ("classes: [zero, one, two]", "classes: []"),
        "my.yaml:9: data.classes: expected at least 1 entries, found []",
    ),
    "no records": (
        ("records: 1438", "records: 0"),
        "my.yaml:6: data.records: expected a number of at least 1, found 0",
    ),
    "two channels": (
        ("channels: 1", "channels: 2"),
        "my.yaml:8: data.channels: expected 1 or 3, found 2",
    ),
    "a size that does not halve": (
        ("size: 8", "size: 10"),
        "my.yaml:7: data.size: expected a multiple of 4, for 3 multipliers halve the image 2 "
        "times, found 10",
    ),
    "attention where no resolution is": (
        ("[4]", "[4, 7]"),
        "my.yaml:17: model.attention[1]: expected resolutions the network works at (8, 4, 2), "
        "found 7",
    ),
    "the default attention does not fit": (
        ("  attention: [4]", "  base: 16"),
        "my.yaml:16: model.attention[0]: expected resolutions the network works at (8, 4, 2), "
        "found 7",
    ),
    "unknown config": (
        ("  attention: [4]", "  attention: [4]\n  config: edn"),
        f"my.yaml:18: model.config: expected {one_of(PRECONDITIONINGS)}, found 'edn' "
        "(did you mean edm?)",
    ),
    "p_mean of a config without": (
        ("  attention: [4]", "  attention: [4]\n  config: v\n  p_mean: 0.5"),
        "my.yaml:19: model.p_mean: expected no value, for config v has none, found 0.5",
    ),
    "batch over N": (
        ("batch: 256", "batch: 2000"),
        "my.yaml:19: train.batch: expected at most the number of records (1438), found 2000",
    ),
    "steps and epochs": (
        ("steps: 400", "steps: 400\n  epochs: 3"),
        "my.yaml:21: train.epochs: expected either steps or epochs, found both",
    ),
    "neither steps nor epochs": (
        ("  steps: 400\n", ""),
        "my.yaml:18: train: expected either steps or epochs, found neither",
    ),
    "not a section": (
        ("  views: 4", "  views: 4\n  warmup: 3"),
        "my.yaml:22: train.warmup: expected a section of key: value lines, found 3",
    ),
    "unknown sampler": (
        ("images: 100", "images: 100\n  sampler: dimm"),
        f"my.yaml:24: synthesize.sampler: expected {one_of((*SAMPLERS, DIRECT))}, found 'dimm' "
        "(did you mean ddim?)",
    ),
    "churn of a sampler without": (
        ("images: 100", "images: 100\n  sampler: ddim\n  churn: {s_churn: 3}"),
        "my.yaml:25: synthesize.churn: expected no section churn, for the sampler is ddim, "
        "found one",
    ),
    "churn upside down": (
        ("images: 100", "images: 100\n  churn: {s_min: 60}"),
        "my.yaml:24: synthesize.churn.s_min: expected a number no greater than s_max (50), "
        "found 60",
    ),
    "noise levels upside down": (
        ("images: 100", "images: 100\n  sigma_min: 90"),
        "my.yaml:24: synthesize.sigma_min: expected a number below sigma_max (80), found 90",
    ),
    "images and per_class": (
        ("images: 100", "images: 100\n  per_class: [1, 2, 3]"),
        "my.yaml:24: synthesize.per_class: expected either images or per_class, found both",
    ),
    "neither images nor per_class": (
        ("images: 100", "steps: 20"),
        "my.yaml:22: synthesize: expected either images or per_class, found neither",
    ),
    "counts for other classes": (
        ("images: 100", "per_class: [1, 2]"),
        "my.yaml:23: synthesize.per_class: expected one count for each of the 3 classes, "
        "found 2 counts",
    ),
    "a negative count": (
        ("images: 100", "per_class: [1, -2, 3]"),
        "my.yaml:23: synthesize.per_class[1]: expected 0 or more, found -2",
    ),
    "no images at all": (
        ("images: 100", "per_class: [0, 0, 0]"),
        "my.yaml:23: synthesize.per_class: expected at least one image, found none",
    ),
    "guidance of a model that never dropped a label": (
        ("  attention: [4]", "  attention: [4]\n  label_dropout: 0"),
        ("images: 100", "images: 100\n  guidance: 0.5"),
        "my.yaml:25: synthesize.guidance: expected 0, for a model trained with label_dropout 0 "
        "has no unconditional part, found 0.5",
    ),
    "unknown classifier": (
        ("  epochs: 3", "  classifiers: [cnn, cnm]"),
        "my.yaml:25: evaluate.classifiers[1]: expected 'logreg', 'mlp' or 'cnn', found 'cnm' "
        "(did you mean cnn?)",
    ),
    "a classifier twice": (
        ("  epochs: 3", "  classifiers: [cnn, cnn]"),
        "my.yaml:25: evaluate.classifiers[1]: expected every classifier once, found 'cnn' again",
    ),
    "evaluation without real images": (
        ("  holdout:\n    source: {kind: digits, split: holdout}\n    public: true\n", ""),
        "my.yaml:21: evaluate: expected data.holdout with real images to test on (or no section "
        "evaluate), found no data.holdout",
    ),
    "two types in vain": (
        ("  epochs: 3", "  epochs: 3\nresources:\n  sampling_actors: many"),
        "my.yaml:27: resources.sampling_actors: expected 'auto' or a whole number, found 'many'",
    ),
    "a GPU and a half": (
        ("  epochs: 3", "  epochs: 3\nresources:\n  gpus_per_worker: 1.5"),
        "my.yaml:27: resources.gpus_per_worker: expected a share of one GPU up to 1, or a whole "
        "number, found 1.5",
    ),
    "an empty section": (
        ("privacy:\n  epsilon: 10\n  delta: 1e-4\n", "privacy:\n"),
        "my.yaml:13: privacy: expected a section of key: value lines, found nothing (null)",
    ),
    "a name that is no file name": (
        ("name: digits-demo", "name: ../Digits"),
        "my.yaml:1: name: expected text that matches ^[a-z0-9-]{1,64}$, found '../Digits'",
    ),
    "a name that ends in a line break": (
        ("name: digits-demo", 'name: "digits\\n"'),
        "my.yaml:1: name: expected text that matches ^[a-z0-9-]{1,64}$, found 'digits\\n'",
    ),
    "more records to a unit than there are": (
        ("  delta: 1e-4", "  delta: 1e-4\n  records_per_unit: 1439"),
        "my.yaml:16: privacy.records_per_unit: expected at most the number of records (1438), "
        "found 1439",
    ),
}


@pytest.mark.parametrize("case", ONE_PROBLEM)
def test_one_problem_one_line(complaints, case):
    *changes, said = ONE_PROBLEM[case]
    assert complaints(*changes) == [said]


def test_a_misspelt_section_is_recognised(complaints):
    (unknown,) = complaints(("train:\n", "trian:\n"))
    assert unknown.startswith("my.yaml:18: trian: ")
    assert unknown.endswith("(did you mean train?)")


def test_the_methods_section_is_required(complaints):
    (missing,) = complaints(
        ("train:\n", "#\n"), ("  batch: 256\n", ""), ("  steps: 400\n", ""), ("  views: 4\n", "")
    )
    assert "train: expected a section, for the method is diffusion, found nothing" in missing


def test_problems_of_many_sections_come_together_in_the_order_of_the_file(complaints):
    said = complaints(
        ("channels: 1", "channels: 4"),
        ("epsilon: 10", "epsilon: 0"),
        ("batch: 256", "batch: 0"),
        ("images: 100", "imagess: 100"),
    )
    fields = [line.split(": ")[1] for line in said]
    assert fields == [
        "data.channels",
        "privacy.epsilon",
        "train.batch",
        "synthesize.imagess",
    ]


def test_problems_between_sections_come_together(complaints):
    said = complaints(("1e-4", "0.5"), ("batch: 256", "batch: 9999"), ("[4]", "[3]"))
    assert len(said) == 3


def test_long_values_are_cut(complaints):
    (said,) = complaints(("name: digits-demo", "name: " + "X" * 500))
    assert len(said) < 200


def test_a_problem_can_be_taken_apart():
    problem = Problem("f.yaml", 3, ("data", "classes", 2), "text", "7")
    assert format_path(problem.path) == "data.classes[2]"
    assert str(SpecError([problem])) == "f.yaml:3: data.classes[2]: expected text, found 7"
