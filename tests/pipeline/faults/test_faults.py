"""A few of the faults that `make faults` injects by the dozen, each in a run of its own."""

import random
from pathlib import Path

import pytest

from tests.pipeline.faults.faults import KINDS, Fault
from tests.pipeline.faults.run_with_fault import run_with_fault
from tests.pipeline.faults.sites import sites
from tests.pipeline.faults.small_runs import STEPS

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes: from /proc"),
]

SEED = random.SystemRandom().getrandbits(32)


@pytest.fixture(scope="module")
def places():
    with sites(KINDS) as places:
        yield places


@pytest.mark.parametrize(
    "fault",
    [
        Fault("driver", "steps", 0.5, workers=2),
        Fault("driver", "synthesize", 0.5, workers=1),
        # Ray cannot start the workers anew that are to hear of it, and would try for ever.
        Fault("disk", "steps", 3.0, workers=2),
        Fault.draw(random.Random(SEED)),
    ],
    ids=["driver while training", "driver while sampling", "disk while training", "any"],
)
def test_a_run_with_a_fault_is_explained_leaves_no_process_and_can_be_resumed(places, fault):
    if fault.kind not in places:
        pytest.skip(f"nothing here can have the fault {fault.kind}")
    outcome = run_with_fault(places[fault.kind], fault)
    assert outcome.problems == [], (SEED, outcome)
    assert outcome.end == "done" or outcome.end == "no run"
    if fault.kind == "driver":
        assert outcome.happened_after is not None and outcome.codes == [-9, 0]
        assert outcome.status == "interrupted"
        assert outcome.executed <= outcome.charged == STEPS
