"""`resources.storage`: its addresses, what is refused at once, and runs whose files lie there."""

import shutil
import stat
import sys

import pytest

from pipeline.audit.ledger import audit_run
from pipeline.runs.directory import RunDirectory
from pipeline.runs.engine import submit
from pipeline.runs.export import export_run
from pipeline.tracking.tracker import RunIdentity, Tracker
from privacy.errors import InvalidRequest, UmbraError
from synth.data.manifest import load_manifest, verify
from synth.storage import ObjectPath, parse_address, require_writable

SECRET = "wJalrXUtnFEMI"


@pytest.fixture
def house(house, blots_spec):
    """The home, with what its data set is declared, so that a run may be submitted."""
    house.declare(blots_spec())
    return house


@pytest.fixture
def with_storage(blots_spec):
    """The spec of the random images with `resources.storage`."""
    return lambda address: blots_spec(
        ("synthesize:", f"resources: {{storage: '{address}'}}\nsynthesize:")
    )


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("file:///shared/x", "/shared/x"),
        ("/shared/x", "/shared/x"),
        # A folder's own name is none that a URL escapes; a URL's is.
        ("/shared/a%20b", "/shared/a%20b"),
        ("/shared/q?x=1#y", "/shared/q?x=1#y"),
        ("/shared/a@b", "/shared/a@b"),
        ("file:///shared/a%20b%3F", "/shared/a b?"),
    ],
)
def test_addresses(address, found):
    assert str(parse_address(address)) == found


@pytest.mark.parametrize(
    "address",
    [
        "",
        "shared/x",
        "./x",
        "~/x",
        "file://host/x",
        "file:x",
        "s4://bucket/x",
        "S3 bucket",
        "s3:/bucket/x",
        "s3://",
        "s3://Bucket/x",
        "s3://bucket/a/../b",
        "s3://bucket/a*",
        "s3://bucket/a b",
        "memory://x",
    ],
)
def test_what_is_no_address_is_refused_with_what_was_expected(address):
    with pytest.raises(InvalidRequest, match=r"s3://BUCKET/PREFIX.*absolute folder.*found"):
        parse_address(address)


@pytest.mark.parametrize(
    "address",
    [f"s3://AKIA:{SECRET}@bucket/x", f"s3://bucket/x?secret={SECRET}", f"file://u:{SECRET}@h/x"],
)
def test_a_credential_in_an_address_is_refused_and_not_repeated(address, house, with_storage):
    rows = house.kinds()
    with pytest.raises(InvalidRequest, match="must not hold credentials") as caught:
        submit(with_storage(address), house.home)
    assert SECRET not in str(caught.value)
    assert house.kinds() == rows and house.home.runs() == ()
    for path in house.home.path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()


@pytest.fixture
def unreachable(s3, monkeypatch):
    """The store refuses whatever it is asked, with a library's own words."""

    class Refusing:
        def __getattr__(self, name):
            def refuse(*_, **__):
                raise PermissionError(f"the key {SECRET} is not known")

            return refuse

    monkeypatch.setattr("synth.storage._store", lambda path: Refusing())


def _refused(house, spec, words):
    """Submit a spec and expect these words before anything is reserved or made."""
    rows = house.kinds()
    with pytest.raises(UmbraError, match=words) as caught:
        submit(spec, house.home)
    assert SECRET not in str(caught.value)
    assert house.kinds() == rows and house.home.runs() == ()


def test_storage_out_of_reach_is_refused_before_a_budget_is_reserved(
    house, with_storage, unreachable
):
    _refused(house, with_storage("s3://umbra/x"), "refused access.*AWS_SECRET_ACCESS_KEY")


def test_a_bucket_that_is_not_there(house, with_storage, s3):
    _refused(house, with_storage("s3://elsewhere/x"), "there is no bucket 'elsewhere'")


def test_a_store_without_the_extra(house, with_storage, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    _refused(house, with_storage("s3://umbra/x"), r"pip install 'umbra-synth\[s3\]'")


def test_a_folder_that_cannot_be_used(house, with_storage, tmp_path):
    _refused(house, with_storage(tmp_path / "absent"), "not a folder here: make it")
    _refused(house, with_storage("/proc"), "resources.storage is /proc, which cannot be written")


def test_the_probe_leaves_nothing(s3, tmp_path):
    for storage in (tmp_path, ObjectPath.parse("s3://umbra/x")):
        require_writable(storage)
        assert list(storage.iterdir()) == []


@pytest.fixture(params=["folder", "store"])
def stored(request, house, with_storage, tmp_path):
    """(house, run, storage): a run whose files lie in a shared folder, or in an object store."""
    address = f"file://{tmp_path / 'shared'}"
    (tmp_path / "shared").mkdir()
    if request.param == "store":
        request.getfixturevalue("s3")
        address = "s3://umbra/runs"
    run = house.reserve(with_storage(address))
    return house, run, parse_address(address)


def test_release_and_checkpoints_lie_apart_below_the_storage(stored):
    house, run, storage = stored
    assert run.release == storage / run.run_id / "release"
    assert run.checkpoints == storage / run.run_id / "checkpoints"
    assert sorted(path.name for path in run.path.iterdir() if path.is_dir()) == ["internal"]
    again = house.home.run(run.run_id)
    assert (again.release, again.checkpoints) == (run.release, run.checkpoints)


def test_without_storage_everything_is_in_the_runs_folder(house, blots_spec):
    run = house.reserve(blots_spec())
    assert run.storage is None
    assert (run.release, run.checkpoints) == (
        run.path / "release",
        run.path / "internal" / "checkpoints",
    )


def test_everything_that_reads_a_release_reads_it_there(stored, tmp_path):
    house, run, _ = stored
    house.finish(run)
    assert verify(run.release) == []
    assert audit_run(house.budget.ledger, run).ok
    for form in ("parquet", "images", "webdataset", "npz"):
        made = export_run(run, house.budget, tmp_path / form, form)
        exported = load_manifest(made.folder)
        assert exported.rows == load_manifest(run.release).rows == 12
    shard = run.release / load_manifest(run.release).shards[0].file
    before = shard.read_bytes()
    (shard.write if isinstance(shard, ObjectPath) else shard.write_bytes)(
        before[:-9] + b"damaged!!"
    )
    assert any("sha256" in line for line in verify(run.release))
    assert not audit_run(house.budget.ledger, run).ok


def test_artifacts_go_to_mlflow_from_there(stored, tmp_path, migrated):
    house, run, storage = stored
    shutil.copy(migrated, house.home.path / "mlflow.db")
    house.finish(run)
    tracker = Tracker(house.home.mlflow_uri, tmp_path / "artifacts")
    identity = RunIdentity(run.run_id, "0" * 64, "ledger", "1:" + "0" * 64, False, "record")
    tracked = tracker.start("blots", identity, run.release)
    tracked.artifact(run.release / "manifest.json")
    tracked.artifact(run.release / "data", "shards")
    names = [entry.path for entry in tracker.client.list_artifacts(tracked.id)]
    assert names == ["manifest.json", "shards"]
    with pytest.raises(InvalidRequest, match="outside"):
        tracked.artifact(storage / run.run_id)
    assert verify(run.release) == []


def test_a_run_does_not_begin_while_its_storage_is_unreachable(stored, unreachable):
    _, run, storage = stored
    if isinstance(storage, ObjectPath):
        with pytest.raises(UmbraError, match="refused access"):
            run.begin()
    else:
        storage.rename(storage.with_name("moved"))
        with pytest.raises(UmbraError, match="not a folder here"):
            run.begin()
    assert run.state().attempt == 0


def test_a_damaged_record_of_the_storage_is_reported(stored):
    _, run, _ = stored
    (run.path / "storage").write_text("somewhere")
    with pytest.raises(InvalidRequest, match=r"resources\.storage"):
        _ = RunDirectory(run.path).release


def test_checkpoints_in_a_shared_folder_are_closed_to_others(tmp_path):
    import torch

    from synth.checkpoint import Checkpoint, save

    state = {"w": torch.zeros(1)}
    save(tmp_path / "run" / "checkpoints", Checkpoint(1, 1, "private", state, state, {}, "h"))
    assert stat.S_IMODE((tmp_path / "run" / "checkpoints").stat().st_mode) == 0o700
