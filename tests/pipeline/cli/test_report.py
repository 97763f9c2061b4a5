import pytest

from privacy.ledger.records import Facts


def test_a_page_that_needs_nothing_else(umbra, finished):
    _, run = finished
    result = umbra("report", run.run_id, "--json")
    assert (result.code, result.err) == (0, "")
    page = run.release / "report.html"
    assert result.json == {"report": str(page)}
    text = page.read_text()
    assert run.run_id in text and "frechet_gabor" in text
    assert "0.9688" not in text and "96.9" not in text
    assert umbra("report", run.run_id).out == f"{page}\n"


@pytest.mark.parametrize("facts", [Facts()])
def test_a_private_reference_stays_out(umbra, house, blots_spec):
    run = house.finish(house.reserve(blots_spec(("    public: true", "    public: false"))))
    assert umbra("report", run.run_id).code == 0
    text = (run.release / "report.html").read_text()
    assert "81.2" not in text and "frechet_gabor" not in text


def test_nothing_to_report(umbra, house, blots_spec):
    run = house.reserve(blots_spec())
    result = umbra("report", run.run_id)
    assert result.code == 2
    assert "has no images yet" in result.err
    assert not (run.release / "report.html").exists()


def test_a_damaged_shard(umbra, finished):
    _, run = finished
    next((run.release / "data").glob("*.parquet")).write_bytes(b"")
    result = umbra("report", run.run_id)
    assert (result.code, result.out) == (4, "")
    assert "sha256" in result.err
