import pytest
import ray

from pipeline.cluster.calls import WorkerFailed, answer, contained
from privacy.errors import BudgetRefused, IntegrityBroken


def test_an_error_for_users_passes_as_it_is(tmp_path):
    with pytest.raises(IntegrityBroken, match=r"^the shard is damaged$"), contained(tmp_path):
        raise IntegrityBroken("the shard is damaged")
    assert list(tmp_path.iterdir()) == []


def test_of_another_error_only_the_type_passes_and_the_trace_is_kept_inside(tmp_path, secret):
    with pytest.raises(WorkerFailed) as caught, contained(tmp_path / "traces"):
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
    with pytest.raises(WorkerFailed, match=words), contained(traces):
        raise KeyError


def test_an_interrupt_is_not_contained(tmp_path):
    with pytest.raises(KeyboardInterrupt), contained(tmp_path):
        raise KeyboardInterrupt


@pytest.mark.slow
def test_an_answer_tells_no_more_than_the_type(embedded, secret, capfd):
    @ray.remote(max_retries=0)
    def fail(kind):
        raise kind(secret)

    with pytest.raises(WorkerFailed) as caught:
        answer(fail.remote(ValueError))
    assert "ValueError" in str(caught.value) and secret not in str(caught.value)
    with pytest.raises(BudgetRefused) as refused:
        answer(fail.remote(BudgetRefused))
    assert str(refused.value) == secret and refused.value.exit_code == 3
    assert refused.value.__cause__ is None
    assert secret not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_a_process_that_dies_is_told_in_words(embedded):
    @ray.remote
    class Mortal:
        def die(self):
            import os

            os._exit(1)

    with pytest.raises(WorkerFailed, match="a worker process died"):
        answer(Mortal.remote().die.remote())
