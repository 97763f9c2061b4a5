"""The peers of the evaluation give the same results, and other results stop the benchmark."""

import numpy as np
import pytest

from benchmarks import evaluation as subject


@pytest.mark.parametrize(
    ("prepare", "arguments"),
    [
        ("feature_cases", (60,)),
        ("distance_cases", (200, 16)),
        ("prdc_cases", (80, 8)),
        ("nearest_cases", (40,)),
        ("classifier_cases", ("logreg", 400)),
    ],
)
def test_both_ways_agree(prepare, arguments):
    cases, notes = getattr(subject, prepare)(*arguments)
    plain, shipped = (case.run() for case in cases)
    assert len(cases) == 2
    assert notes
    if prepare != "classifier_cases":
        found = [np.ravel(result) for result in (plain, shipped)]
        np.testing.assert_allclose(found[0], found[1], rtol=1e-6, atol=1e-9)


def test_other_results_are_refused(monkeypatch):
    wrong = subject.plain_prdc
    monkeypatch.setattr(subject, "plain_prdc", lambda *of: [x + 1e-3 for x in wrong(*of)])
    with pytest.raises(AssertionError, match="precision and recall"):
        subject.prdc_cases(80, 8)
