import pytest


@pytest.fixture
def exported(finished, tmp_path):
    house, run = finished
    return house, run, house.export(run, tmp_path / "out")


def test_the_ledger_a_run_and_an_export_pass(umbra, exported):
    _, run, folder = exported
    for subject in ([], [run.run_id], [folder], [run.path]):
        result = umbra("audit", *subject)
        assert (result.code, result.err) == (0, "")
        assert "passed" in result.out and "BROKEN" not in result.out
        said = umbra("audit", *subject, "--json")
        assert said.code == 0 and said.json["ok"] is True
        assert said.json["ledger"]["datasets"][0]["name"] == "blots"
    assert "blots" in result.out and "8.5" in result.out


def test_broken_is_told_in_sentences(umbra, exported, tamper):
    house, run, folder = exported
    tamper(house, "UPDATE umbra_ledger SET body = replace(body, '\"steps\":4', '\"steps\":1')")
    for subject in ([], [run.run_id], [folder]):
        result = umbra("audit", *subject)
        assert result.code == 4
        assert "FAILED" in result.out and "BROKEN: row" in result.out
        said = umbra("audit", *subject, "--json")
        assert said.code == 4 and said.json["ok"] is False
        assert said.json["ledger"]["findings"][0]["problem"]


@pytest.mark.parametrize("where", ["run", "export"])
def test_a_tampered_shard(umbra, exported, where):
    _, run, folder = exported
    place = run.release if where == "run" else folder
    shard = next((place / "data").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes().replace(b"PNG", b"GNP", 1))
    result = umbra("audit", run.run_id if where == "run" else folder)
    assert result.code == 4
    assert f"BROKEN: changed: data/{shard.name}" in result.out


def test_a_changed_promise(umbra, exported):
    _, _, folder = exported
    path = folder / "privacy.json"
    path.write_text(path.read_text().replace('"records": 40', '"records": 4000'))
    result = umbra("audit", folder)
    assert result.code == 4
    assert "BROKEN: privacy.json does not state the records" in result.out


def test_a_ledger_that_was_cut_off(umbra, exported, tamper):
    house, run, folder = exported
    tamper(house, "DELETE FROM umbra_ledger WHERE seq >= 6")
    for subject in ([], [run.run_id], [folder]):
        result = umbra("audit", *subject)
        assert result.code == 4
        assert "which is gone: rows were cut off" in result.out


def test_an_export_of_another_house(umbra, exported, tmp_path, monkeypatch):
    _, _, folder = exported
    monkeypatch.setenv("UMBRA_HOME", str(tmp_path / "other"))
    umbra("budget", "declare", "blots", "--epsilon", "1", "--delta", "1e-3")
    result = umbra("audit", folder)
    assert (result.code, result.out) == (2, "")
    assert "was exported under ledger" in result.err and "UMBRA_HOME" in result.err


def test_no_ledger(umbra, tmp_path):
    result = umbra("audit")
    assert (result.code, result.out) == (1, "")
    assert "There is no ledger" in result.err
    assert not (tmp_path / "home").exists()


def test_a_file_name_from_a_stranger(umbra, exported):
    _, _, folder = exported
    (folder / "\x1b[2Jx").touch()
    result = umbra("audit", folder)
    assert result.code == 4
    assert "\x1b" not in result.out
