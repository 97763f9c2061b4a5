import json
from dataclasses import replace

import pytest

from pipeline.audit.run import RunAudit
from privacy.audit.distinguish import LowerBound
from privacy.audit.mechanism import Check, ComposedBound, MechanismAudit
from privacy.ledger import Ledger
from privacy.ledger.records import Facts
from privacy.records import LabelledRecords


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


def test_findings_are_printed_as_sentences(umbra, exported, tamper):
    house, run, folder = exported
    tamper(house, "UPDATE umbra_ledger SET body = replace(body, '\"steps\":4', '\"steps\":1')")
    for subject in ([], [run.run_id], [folder]):
        result = umbra("audit", *subject)
        assert result.code == 4
        assert "FAILED" in result.out and "BROKEN: row" in result.out
        said = umbra("audit", *subject, "--json")
        assert said.code == 4 and said.json["ok"] is False
        assert said.json["ledger"]["findings"][0]["problem"]


def test_many_findings_are_counted_and_all_in_json(umbra, exported, tamper):
    house, *_ = exported
    for number in range(30):
        house.budget.declare(f"set-{number}", 1.0, 1e-6)
    tamper(house, "UPDATE umbra_ledger SET created_at = 'long ago' WHERE kind = 'declare'")
    result = umbra("audit")
    found = umbra("audit", "--json").json["ledger"]["findings"]
    assert result.code == 4 and len(found) >= 31
    assert result.out.count("BROKEN: ") == 21
    assert f"and {len(found) - 20} more findings" in result.out


@pytest.mark.parametrize("where", ["run", "export"])
def test_a_tampered_shard(umbra, exported, where):
    _, run, folder = exported
    place = run.release if where == "run" else folder
    shard = next((place / "data").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes().replace(b"PNG", b"GNP", 1))
    result = umbra("audit", run.run_id if where == "run" else folder)
    assert result.code == 4
    assert f"BROKEN: changed: data/{shard.name}" in result.out


def test_a_changed_privacy_statement(umbra, exported):
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


def test_a_hostile_file_name(umbra, exported):
    _, _, folder = exported
    (folder / "\x1b[2Jx").touch()
    result = umbra("audit", folder)
    assert result.code == 4
    assert "\x1b" not in result.out


def test_the_verb_may_be_left_out(umbra, exported):
    _, run, folder = exported
    for subject in ([], [run.run_id], [folder]):
        short, long = (
            umbra("audit", *subject, "--json"),
            umbra("audit", "ledger", *subject, "--json"),
        )
        assert (short.code, short.json) == (0, long.json)
        assert umbra("audit", "--json", *subject).json == long.json
        assert umbra("audit", "--json", "ledger", *subject).json == long.json


def test_a_folder_that_is_called_like_a_verb(umbra, exported, monkeypatch):
    _, _, folder = exported
    folder.rename(folder.parent / "run")
    monkeypatch.chdir(folder.parent)
    assert umbra("audit", "./run").code == 0
    taken_as_verb = umbra("audit", "run")
    assert (taken_as_verb.code, taken_as_verb.out) == (2, "")
    assert "Missing argument 'RUN'" in taken_as_verb.err


@pytest.mark.parametrize("verb", ["ledger", "mechanism", "run", "release"])
def test_every_verb_has_help_and_json(umbra, verb):
    result = umbra("audit", verb, "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"Usage: umbra audit {verb} [OPTIONS]")
    assert "--json" in result.out
    assert verb in umbra("audit", "--help").out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["audit", "a", "b"], "unexpected extra argument"),
        (["audit", "run"], "Missing argument 'RUN'. (see `umbra audit run --help`)"),
        (["audit", "release"], "Missing argument 'RUN'"),
        (["audit", "run", "x", "--canaries", "0"], "0 is not in the range x>=1"),
        (["audit", "run", "x", "--guesses", "many"], "'many' is not a valid integer"),
        (["audit", "mechanism", "--trials", "x"], "'x' is not a valid integer"),
        (["audit", "mechanism", "--trials", "1"], "trials"),
        (["audit", "--empirical"], "--empirical audits one run"),
        (["audit", "run", "blotz"], "there is no run 'blotz'"),
        (["audit", "release", "blotz"], "there is no run 'blotz'"),
        (["audit", "mechanism", "blotz"], "there is no run 'blotz'"),
        (["audit", "mechanism", "gone.yaml"], "gone.yaml"),
        (["audit", "--public-key", "xyz"], "public key"),
    ],
)
def test_bad_usage(umbra, finished, arguments, told):
    result = umbra(*arguments)
    assert (result.code, result.out) == (2, "")
    assert told in result.err.replace("Ed25519 key", "public key")


def test_an_export_is_no_run(umbra, exported):
    _, _, folder = exported
    for arguments in (["run", folder], ["release", folder], [folder, "--empirical"]):
        result = umbra("audit", *arguments)
        assert (result.code, result.out) == (2, "")
        assert "is not a run" in result.err


def test_who_what_and_which_part(umbra, exported):
    house, run, folder = exported
    out = umbra("audit", run.run_id).out
    assert house.home.author in out
    assert "dp-sgd 4 of 4" in out and "settled" in out and "train" in out
    assert json.loads((folder / "privacy.json").read_text())["manifest_sha256"] in out
    assert "Rows signed: no" in out
    assert "replace" in out.lower()  # the guarantee under another relation, labelled as such


def test_a_public_key_from_elsewhere(umbra, exported, tmp_path):
    house, run, _ = exported
    key = Ledger.open(house.home.ledger_url, house.key).start_signing(bytes(range(32)))
    assert key in umbra("audit").out
    (tmp_path / "key.pub").write_text(key)
    for good in (key, tmp_path / "key.pub"):
        assert umbra("audit", "--public-key", good).code == 0
        assert umbra("audit", run.run_id, "--public-key", good).code == 0
    bad = umbra("audit", "ledger", "--public-key", "ab" * 32)
    assert bad.code == 4 and "BROKEN" in bad.out


@pytest.fixture
def found_out(monkeypatch):
    """Replace the audit of a step and of a training by verdicts, both good at first."""
    step = MechanismAudit(
        engine="layerwise",
        sampling_probability=0.5,
        noise_multiplier=1.0,
        clip_norm=1.0,
        delta=1e-3,
        records=8,
        views=2,
        workers=(1,),
        bounds=(ComposedBound(1, 2.0, LowerBound(0.5, 3.0, 0.999, 100)),),
        checks=(Check("noise is fresh", True, None, "all of it"),),
    )
    trained = RunAudit(
        run_id="blots",
        canaries=20,
        guesses=10,
        right=6,
        delta=1e-3,
        confidence=0.95,
        epsilon_lower=0.25,
        detectable=1.5,
        claimed={"rdp": 1.25, "pld": 1.0},
        void=False,
    )
    verdicts = {"step": step, "trained": trained}
    monkeypatch.setattr("pipeline.audit.run.audit_step", lambda *arguments: verdicts["step"])
    monkeypatch.setattr("pipeline.audit.run.audit_training", lambda *arguments: verdicts["trained"])
    return verdicts


def test_a_step_that_keeps_its_claim(umbra, house, found_out):
    result = umbra("audit", "mechanism")
    assert result.code == 0
    assert "passed" in result.out and "BROKEN" not in result.out
    for shown in ("noise is fresh", "0.5", "2", "3", "99.9 %"):
        assert shown in result.out
    assert umbra("audit", "mechanism", "--json").json["broken"] is False


@pytest.mark.parametrize(
    "broken",
    [
        {"bounds": (ComposedBound(1, 2.0, LowerBound(2.5, 3.0, 0.999, 100)),)},
        {"checks": (Check("noise is fresh", False, None, "none of it"),)},
    ],
)
def test_a_step_that_does_not(umbra, house, found_out, broken):
    found_out["step"] = replace(found_out["step"], **broken)
    result = umbra("audit", "mechanism")
    assert result.code == 4
    assert "FAILED" in result.out and "BROKEN" in result.out
    assert umbra("audit", "mechanism", "--json").code == 4


def test_a_training_always_says_what_it_could_have_shown(umbra, finished, found_out):
    _, run = finished
    result = umbra("audit", "run", run.run_id)
    assert result.code == 0
    assert "passed" in result.out and "could have shown  1.5 at most" in result.out
    assert "1.0 (PLD)" in result.out and "6 of 10 right" in result.out
    found_out["trained"] = replace(found_out["trained"], detectable=0.75)
    assert "could not have refuted the claim" in umbra("audit", "run", run.run_id).out
    assert umbra("audit", "run", run.run_id, "--json").json["detectable"] == 0.75


def test_lower_bounds_are_rounded_down(umbra, finished, found_out):
    _, run = finished
    found_out["trained"] = replace(found_out["trained"], epsilon_lower=0.99999, detectable=1.49999)
    out = umbra("audit", "run", run.run_id).out
    assert "0.9999 at" in out and "1.4999 at most" in out


def test_a_training_that_breaks_its_claim(umbra, finished, found_out):
    _, run = finished
    # Above the claim by PLD, though not above the looser one by RDP.
    found_out["trained"] = replace(found_out["trained"], epsilon_lower=1.125)
    result = umbra("audit", "run", run.run_id)
    assert result.code == 4
    assert "FAILED" in result.out and "BROKEN: the training has ε of at least 1.125" in result.out
    assert umbra("audit", "run", run.run_id, "--json").code == 4


def test_the_release_of_private_images(umbra, finished):
    """Neither standard output nor standard error holds a figure of what was found."""
    _, run = finished
    result = umbra("audit", "release", run.run_id)
    path = run.internal / "release-audit.json"
    assert result.code == 0
    assert str(path) in result.out and "share nothing" in result.out
    assert "opening the private images" in result.err
    said = umbra("audit", "release", run.run_id, "--json")
    assert said.json == {
        "run": run.run_id,
        "written": str(path),
        "may_be_shared": False,
        "findings": None,
    }
    figures = json.loads(path.read_text())["spaces"]["pixels"]["membership"]["nearest"]
    for text in (result.out, result.err, said.err):
        assert "AUC" not in text and f"{figures['auc']:.3f}" not in text


@pytest.mark.parametrize("facts", [Facts(public=True, public_holdout=True)])
def test_the_release_of_public_images(umbra, house, blots_spec):
    public = ("  channels: 1\n", "  channels: 1\n  public: true\n")
    run = house.finish(house.reserve(blots_spec(public)))
    result = umbra("audit", "release", run.run_id)
    assert result.code == 0
    assert "In pixels" in result.out and "AUC" in result.out
    assert "0 of training images" in result.out
    assert "prove nothing about differential privacy" in result.out
    assert "share nothing" not in result.out


def test_copies_are_no_breach_of_the_files(umbra, blots, finished, monkeypatch):
    """Distances never decide the exit code."""
    import numpy as np

    _, run = finished
    with np.load(blots / "train.npz") as train:
        planted = LabelledRecords(train["images"], train["labels"])
    monkeypatch.setattr("pipeline.audit.release.read_shards", lambda folder: iter([planted]))
    assert umbra("audit", "release", run.run_id).code == 0
    written = json.loads((run.internal / "release-audit.json").read_text())
    assert written["spaces"]["pixels"]["copies"]["exact_train"] == 40


def test_a_release_whose_files_are_broken(umbra, finished):
    _, run = finished
    shard = next((run.release / "data").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    for verb in ("release", "run"):
        result = umbra("audit", verb, run.run_id)
        assert (result.code, result.out) == (4, "")
        assert shard.name in result.err


def test_all_verbs_about_a_run(umbra, finished, found_out):
    _, run = finished
    result = umbra("audit", run.run_id, "--empirical")
    assert result.code == 0
    heads = ("Audit of run", "Audit of the mechanism", "Audit of the training", "Findings on the")
    assert sorted(heads, key=result.out.index) == list(heads)
    said = umbra("audit", run.run_id, "--empirical", "--json").json
    assert said["ok"] is True
    assert {"ledger", "mechanism", "run", "release"} < said.keys()
    assert said["release"]["findings"] is None


@pytest.mark.parametrize("verdict", ["step", "trained"])
def test_one_that_fails_is_enough(umbra, finished, found_out, verdict):
    _, run = finished
    worse = (
        {"checks": (Check("", False, None, ""),)} if verdict == "step" else {"claimed": {"": 0.1}}
    )
    found_out[verdict] = replace(found_out[verdict], **worse)
    assert umbra("audit", run.run_id, "--empirical").code == 4
    said = umbra("audit", run.run_id, "--empirical", "--json")
    assert said.code == 4 and said.json["ok"] is False


def test_a_broken_ledger_is_not_built_upon(umbra, finished, tamper, monkeypatch):
    house, run = finished

    def refuse(*arguments):
        raise AssertionError("went on")

    monkeypatch.setattr("pipeline.audit.run.audit_step", refuse)
    tamper(house, "UPDATE umbra_ledger SET body = replace(body, '\"steps\":4', '\"steps\":1')")
    result = umbra("audit", run.run_id, "--empirical")
    assert result.code == 4
    assert "BROKEN: row" in result.out and "nothing else was audited" in result.err
    assert umbra("audit", run.run_id, "--empirical", "--json").json["ok"] is False


def test_a_run_without_a_holdout_has_no_release_to_compare(umbra, house, blots_spec, found_out):
    run = house.finish(
        house.reserve(
            blots_spec(
                ("  holdout:\n    source: {kind: npz, path: holdout.npz}\n    public: true\n", ""),
                ("evaluate:\n  classifiers: [logreg, mlp]\n", ""),
            )
        )
    )
    assert umbra("audit", "release", run.run_id).code == 2
    result = umbra("audit", run.run_id, "--empirical")
    assert result.code == 0 and "its release was not audited" in result.out


def test_what_will_be_refused_is_refused_before_the_training(umbra, finished, found_out):
    _, run = finished
    (run.internal / "run.key").unlink()
    result = umbra("audit", run.run_id, "--empirical")
    assert (result.code, result.out) == (4, "")
    assert "missing: internal/run.key" in result.err
