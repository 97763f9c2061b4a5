from dataclasses import replace

from pipeline.cli.budget import describe_row
from privacy.ledger import Kind, Row


def test_every_row_is_described_in_a_line(finished, tmp_path):
    house, run = finished
    house.export(run, tmp_path / "out")
    house.budget.close("blots")
    lines = [describe_row(row) for row in house.budget.history("blots")]
    assert lines[0] == "declared ε = 8.5 at δ = 0.001"
    assert lines[1:3] == [
        "declared what it is: image, up to 1 records of one, public: False, holdout public: True",
        f"run {run.run_id} opened a holdout of 20 records",
    ]
    del lines[1:3]
    assert lines[1] == "train: bound to 40 records"
    assert lines[2].startswith("train: admitted on the RDP order ")
    assert lines[2].endswith(" alone (plan)")
    assert lines[3] == f"reserved for run {run.run_id}: dp-sgd × 4"
    assert lines[4:7] == [
        "attempt 1 began",
        "charged 4 steps of dp-sgd, attempt 1",
        "settled: dp-sgd × 4 charged, the rest given back",
    ]
    assert lines[7].startswith(f"exported from run {run.run_id}: parquet export")
    assert lines[8] == "closed: nothing more is admitted"
    assert len(lines) == 9


def test_a_kind_that_is_not_known_is_named(finished):
    house, _ = finished
    row: Row = next(house.budget.ledger.rows(kind=Kind.DECLARE))
    assert describe_row(replace(row, kind="dreamt")) == "dreamt"


def test_every_kind_about_a_data_set_has_a_description():
    from pipeline.cli.budget import _DESCRIPTIONS

    assert set(Kind) - set(_DESCRIPTIONS) == {Kind.GENESIS, Kind.MIGRATE, Kind.SIGNER}
