import pytest
import ray

from pipeline.cluster.calls import WorkerDied, WorkerFailed, get_result, sanitize_errors
from privacy.errors import BudgetRefused, IntegrityBroken


def test_an_error_for_users_passes_as_it_is(tmp_path):
    with pytest.raises(IntegrityBroken, match=r"^the shard is damaged$"), sanitize_errors(tmp_path):
        raise IntegrityBroken("the shard is damaged")
    assert list(tmp_path.iterdir()) == []


def test_only_the_type_of_another_error_passes_and_its_trace_stays_internal(tmp_path, secret):
    with pytest.raises(WorkerFailed) as caught, sanitize_errors(tmp_path / "traces"):
        raise ZeroDivisionError(secret)
    error = caught.value
    assert "ZeroDivisionError" in str(error) and secret not in str(error)
    assert error.__cause__ is None and error.__suppress_context__
    (trace,) = (tmp_path / "traces").iterdir()
    assert secret in trace.read_text() and str(trace) in str(error)


def test_a_trace_that_cannot_be_written_hides_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    traces = tmp_path / "file" / "traces"
    words = "KeyError; its trace could not be written"
    with pytest.raises(WorkerFailed, match=words), sanitize_errors(traces):
        raise KeyError


def test_an_interrupt_passes_unchanged(tmp_path):
    with pytest.raises(KeyboardInterrupt), sanitize_errors(tmp_path):
        raise KeyboardInterrupt


@pytest.mark.slow
def test_a_result_carries_only_the_type_of_an_unforeseen_error(embedded, secret, capfd):
    @ray.remote(max_retries=0)
    def fail(kind):
        raise kind(secret)

    with pytest.raises(WorkerFailed) as caught:
        get_result(fail.remote(ValueError))
    assert "ValueError" in str(caught.value) and secret not in str(caught.value)
    with pytest.raises(BudgetRefused) as refused:
        get_result(fail.remote(BudgetRefused))
    assert str(refused.value) == secret and refused.value.exit_code == 3
    assert refused.value.__cause__ is None
    assert secret not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_a_process_that_dies_raises_worker_died(embedded):
    @ray.remote
    class Mortal:
        def die(self):
            import os

            os._exit(1)

    with pytest.raises(WorkerDied, match="a worker process died"):
        get_result(Mortal.remote().die.remote())
