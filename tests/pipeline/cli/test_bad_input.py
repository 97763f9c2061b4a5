"""Bad input: a sentence, the right exit code, nothing spent and nothing left behind."""

import gzip
import json
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SOURCE = "source: {kind: npz, path: train.npz}"


@pytest.fixture
def refused(umbra, house, no_ray):
    """Submit a spec that must be refused."""

    def submit(spec, code, *told):
        before = house.kinds()
        for arguments in (["submit", spec], ["submit", spec, "--json"]):
            result = umbra(*arguments)
            assert result.code == code, result.err
            for part in told:
                assert part in result.err, result.err
            assert house.kinds() == before
            assert list(house.home.runs_path.iterdir()) == []
            if "--json" in arguments:
                assert result.json["exit_code"] == code
                assert f"umbra: {result.json['error']}\n" == result.err
            else:
                assert result.out == ""
        assert house.budget.odometer("blots").left == 8.5

    return submit


@pytest.fixture
def npz(tmp_path):
    """A spec's data source made of these arrays."""

    def write(images, labels):
        path = tmp_path / "bad.npz"
        np.savez(path, images=images, labels=labels)
        return SOURCE, f"source: {{kind: npz, path: {path}}}"

    return write


def idx(array, cut=0):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    return data[: len(data) - cut]


IMAGES = np.zeros((40, 8, 8, 1), dtype=np.uint8)
LABELS = np.arange(40) % 2


def test_a_spec_that_is_not_there(refused, tmp_path):
    refused(tmp_path / "no.yaml", 2, "no.yaml: expected a spec file, found no such file")


def test_data_that_are_not_there(refused, write_spec):
    spec = write_spec((SOURCE, "source: {kind: npz, path: gone.npz}"))
    refused(spec, 2, "gone.npz: a file was expected, found nothing")


@pytest.mark.parametrize("zipped", [False, True])
def test_truncated_idx(refused, write_spec, tmp_path, zipped):
    images = idx(IMAGES[..., 0], cut=100)
    whole = gzip.compress(idx(IMAGES[..., 0]))
    (tmp_path / "images").write_bytes(whole[: len(whole) // 2] if zipped else images)
    (tmp_path / "labels").write_bytes(idx(LABELS))
    spec = write_spec((SOURCE, "source: {kind: idx, images: images, labels: labels}"))
    refused(spec, 2, "damaged" if zipped else "2560 bytes were expected", "images")


def test_labels_out_of_range(refused, write_spec, npz):
    labels = LABELS.copy()
    labels[7] = 76
    refused(write_spec(npz(IMAGES, labels)), 2, "labels from 0 to 1 were expected")


def test_labels_that_are_negative(refused, write_spec, npz):
    refused(write_spec(npz(IMAGES, LABELS - 1)), 2, "labels from 0 to 1 were expected")


def test_images_of_another_size(refused, write_spec, npz):
    images = np.zeros((40, 9, 9, 1), dtype=np.uint8)
    refused(write_spec(npz(images, LABELS)), 2, "8×8×1", "found 9×9×1")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers(refused, write_spec, npz, value):
    images = np.zeros((40, 8, 8, 1), dtype=np.float32)
    images[3, 2, 1, 0] = value
    refused(write_spec(npz(images, LABELS)), 2, "finite pixels were expected")


def test_an_empty_data_set(refused, write_spec, npz):
    refused(write_spec(npz(IMAGES[:0], LABELS[:0])), 2, "the data set is empty")


def test_another_number_of_records(refused, write_spec):
    spec = write_spec(("records: 40", "records: 39"))
    refused(spec, 2, "data.records declares N = 39, the source holds 40")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("delta: 1e-3", "delta: 0.025", "privacy.delta: expected a number below 1/records = 1/40"),
        ("delta: 1e-3", "delta: 0", "privacy.delta: expected a number greater than 0"),
        (
            "epsilon: 8",
            "epsilon: -8",
            "privacy.epsilon: expected a number greater than 0, found -8",
        ),
        ("epsilon: 8", "epsilon: .nan", "privacy.epsilon: expected a finite number"),
        ("epsilon: 8", "epsilon: .inf", "privacy.epsilon: expected a finite number"),
        ("epsilon: 8", "epsilon: eight", "privacy.epsilon: expected a number, found 'eight'"),
        ("sampler: ddim", "sampler: dimm", "synthesize.sampler: expected one of"),
        ("sampler: ddim", "sampler: dimm", "did you mean ddim?"),
        ("kind: npz, path: train", "kind: nzp, path: train", "did you mean npz?"),
        ("batch: 20", "batsh: 20", "did you mean batch?"),
        ("batch: 20", "batch: 41", "at most the number of records (40)"),
    ],
)
def test_a_wrong_value_in_a_spec(refused, write_spec, old, new, told):
    spec = write_spec((old, new))
    text = spec.read_text()
    line = text[: text.index(new.partition(",")[0])].count("\n") + 1
    refused(spec, 2, told, f"spec.yaml:{line}: ")


def test_an_epsilon_that_no_noise_meets(refused, write_spec):
    warmup = (
        "warmup: {noise_multiplier: 0.1, clip_norm: 1, steps: 1, batch: 1, learning_rate: 1e-3}"
    )
    spec = write_spec(("  views: 2", f"  views: 2\n  {warmup}"))
    refused(spec, 2, "the warm-up alone spends", "Raise train.warmup.noise_multiplier")


def test_a_budget_too_small(refused, write_spec):
    spec = write_spec(("epsilon: 8", "epsilon: 12"))
    refused(spec, 3, "The budget of 'blots' does not admit this plan", "8.5 is left")


def test_a_budget_used_up(umbra, finished, no_ray, write_spec):
    house, _ = finished
    before = house.kinds()
    result = umbra("submit", write_spec())
    assert result.code == 3
    assert "does not admit this plan" in result.err
    assert house.kinds() == before
    assert len(house.home.runs()) == 1


def test_no_budget_declared(refused, write_spec):
    spec = write_spec(("  name: blots\n", "  name: other\n"))
    refused(spec, 3, "'other' has no budget yet", "umbra budget declare other --epsilon")


def test_no_budget_on_a_fresh_machine(umbra, no_ray, write_spec, tmp_path):
    result = umbra("submit", write_spec())
    assert result.code == 3
    assert "umbra budget declare blots --epsilon" in result.err
    assert list((tmp_path / "home" / "runs").iterdir()) == []


def test_another_delta_than_declared(refused, write_spec):
    refused(write_spec(("delta: 1e-3", "delta: 1e-4")), 3, "was declared with δ = 0.001")


def test_a_renamed_data_set(umbra, finished, no_ray, write_spec):
    house, _ = finished
    umbra("budget", "declare", "fresh", "--epsilon", "10", "--delta", "1e-3", "--public-holdout")
    before = house.kinds()
    result = umbra("submit", write_spec(("  name: blots\n", "  name: fresh\n")))
    assert result.code == 3
    assert "content of the data set 'blots' under another name" in result.err
    assert house.kinds() == before
    assert len(house.home.runs()) == 1


def test_other_data_under_the_same_name(umbra, finished, no_ray, write_spec, npz):
    house, _ = finished
    before = house.kinds()
    cheap = ("epsilon: 8", "epsilon: 0.2")  # enough is left
    result = umbra("submit", write_spec(npz(IMAGES, LABELS), cheap))
    assert result.code == 3
    assert "'blots' (part 'train') stands for other content" in result.err
    assert house.kinds() == before


@pytest.mark.parametrize(
    ("content", "mode", "code", "told"),
    [
        (b"k" * 32, 0o600, 2, "the fingerprint key"),
        (b"short", 0o600, 4, "must be a regular file of 32 bytes"),
        (None, 0o644, 2, "expected 0600"),
    ],
)
def test_a_wrong_key(umbra, house, no_ray, write_spec, content, mode, code, told):
    if content is not None:
        house.home.key_path.write_bytes(content)
    house.home.key_path.chmod(mode)
    before = house.kinds()
    for arguments in (
        ["submit", write_spec()],
        ["budget", "declare", "more", "--epsilon", "1", "--delta", "1e-5"],
    ):
        result = umbra(*arguments)
        assert (result.code, result.out) == (code, "")
        assert told in result.err
    assert house.kinds() == before
    assert house.home.runs() == ()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/umbra"])
@pytest.mark.parametrize("verb", ["submit", "declare"])
def test_a_home_that_cannot_be_written(
    umbra, no_ray, write_spec, tmp_path, monkeypatch, place, verb
):
    (tmp_path / "file").write_text("mine")
    if place.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    monkeypatch.setenv("UMBRA_HOME", str(tmp_path / place))
    declare = ["budget", "declare", "x", "--epsilon", "1", "--delta", "1e-5"]
    result = umbra(*(["submit", write_spec()] if verb == "submit" else declare))
    assert (result.code, result.out) == (1, "")
    assert "UMBRA_HOME is" in result.err and "cannot be written" in result.err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_fills_up_while_a_run_is_made(refused, write_spec, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.runs.directory.write_bytes", full)
    refused(write_spec(), 1, "No space left on device")


def test_a_disk_that_fills_up_at_ingest(refused, write_spec, monkeypatch):
    from privacy.errors import UmbraError

    def full(path, data):
        raise UmbraError(f"cannot write {path}: the disk is full")

    monkeypatch.setattr("pipeline.runs.dataset_identity.write_bytes", full)
    refused(write_spec(), 1, "the disk is full")


def test_no_file_may_grow(house):
    """The system itself refuses every write beyond a few bytes: the ledger says so."""
    before = house.kinds()

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))

    declare = ["budget", "declare", "new", "--epsilon", "1", "--delta", "1e-5"]
    result = subprocess.run(
        [sys.executable, "-B", "-c", "from pipeline.cli.main import main; main()", *declare],
        capture_output=True,
        text=True,
        preexec_fn=limit,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("umbra: The ledger at ")
    assert "with room on its disk" in result.stderr and result.stderr.count("\n") == 1
    assert house.kinds() == before


def test_a_disk_that_is_full_before_libraries_are_imported(blots):
    """One of them looks for a folder for its temporary files; there is none."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    program = [sys.executable, "-B", "-c", "from pipeline.cli.main import main; main()"]
    result = subprocess.run(
        [*program, "plan", blots / "blots.yaml", "--json"],
        capture_output=True,
        text=True,
        preexec_fn=limit,
        timeout=120,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("umbra: there is no folder for temporary files")
    assert result.stderr.endswith("then repeat the command\n") and result.stderr.count("\n") == 1
    assert json.loads(result.stdout)["exit_code"] == 1


@pytest.mark.parametrize("verb", ["status", "logs", "resume", "cancel", "report", "audit"])
def test_a_run_that_does_not_exist(umbra, finished, no_ray, verb):
    _, run = finished
    result = umbra(verb, "blotz-1")
    assert (result.code, result.out) == (2, "")
    assert "there is no run 'blotz-1'" in result.err
    assert run.run_id in result.err  # the closest


def test_an_export_of_a_run_that_does_not_exist(umbra, finished, tmp_path):
    result = umbra("export", "blotz-1", tmp_path / "out")
    assert result.code == 2
    assert "there is no run" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "{", '{"run_id": "x"}'])
def test_a_damaged_state(umbra, finished, tmp_path, text):
    house, run = finished
    before = house.kinds()
    run.state_path.write_text(text)
    for arguments in (
        ["status", run.run_id],
        ["resume", run.run_id],
        ["cancel", run.run_id],
        ["report", run.run_id],
        ["audit", run.run_id],
        ["export", run.run_id, tmp_path / "out"],
    ):
        result = umbra(*arguments)
        assert (result.code, result.out) == (4, ""), arguments
        assert "state.json is damaged" in result.err and "Restore it" in result.err
    assert umbra("runs", "--json").json[0]["status"] == "damaged"
    assert house.kinds() == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "name: [", "name: other\n"])
def test_a_damaged_spec_of_a_run(umbra, finished, no_ray, tmp_path, text):
    house, run = finished
    before = house.kinds()
    run.spec_path.write_text(text)
    for arguments in (
        ["report", run.run_id],
        ["export", run.run_id, tmp_path / "out"],
    ):
        result = umbra(*arguments)
        assert (result.code, result.out) == (4, ""), arguments
        assert "spec" in result.err and "Restore it" in result.err
    audited = umbra("audit", run.run_id)
    assert audited.code == 4
    assert "spec" in audited.out and "BROKEN" in audited.out
    assert house.kinds() == before


def test_a_damaged_ledger(umbra, house, no_ray, write_spec):
    database = house.home.path / "ledger.db"
    data = bytearray(database.read_bytes())
    data[:100] = b"x" * 100
    database.write_bytes(data)
    for path in house.home.path.glob("ledger.db-*"):
        path.unlink()
    for arguments in (["submit", write_spec()], ["budget", "show"], ["audit"]):
        result = umbra(*arguments)
        assert result.code == 4
        assert "damaged" in result.err
    assert house.home.runs() == ()
