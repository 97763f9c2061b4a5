"""The table of the utility benchmark."""

import json

from benchmarks.utility.results import load_results, markdown


def _write(folder, repeat, accuracy):
    place = folder / "umbra" / "mnist-moments" / "1" / str(repeat)
    place.mkdir(parents=True)
    fit = {"method": "moments", "data": "mnist", "epsilon": 1, "fit and sampling seconds": 300}
    (place / "fit.json").write_text(json.dumps(fit))
    result = {"classifier": "cnn", "accuracy": accuracy}
    (place / "cnn-50.json").write_text(json.dumps(result))


def test_the_table_has_mean_interval_and_the_published_row(tmp_path):
    for repeat, accuracy in enumerate((0.95, 0.96, 0.97)):
        _write(tmp_path, repeat, accuracy)
    table = markdown(load_results(tmp_path))
    # Student's quantile at two degrees of freedom is 4.3027, so ± 4.3027 · 1 / √3 = 2.48.
    assert (
        "| mnist | 1 | moments (mnist-moments) | – | – | 96.0 ± 2.5 | – | 5.0 ± 0.0 | 3 |" in table
    )
    assert "| mnist | 1 | DPDM, published | 86.7 | 91.6 | 95.3 |" in table


def test_what_is_missing_is_a_dash_and_no_error(tmp_path):
    _write(tmp_path, 0, 0.9)
    assert "| – | – | 90.0 | – | 5.0 | 1 |" in markdown(load_results(tmp_path))
