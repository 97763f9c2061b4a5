import pytest

from pipeline.cluster.connection import require_room, this_machine
from pipeline.spec import Resources
from privacy.errors import UmbraError

THERE = {"CPU": 4.0, "GPU": 1.0, "memory": 8.0 * 1024**3}


@pytest.mark.parametrize(
    "asked",
    [
        {"workers": 4},
        {"workers": 2, "cpus_per_worker": 2},
        {"workers": 2, "gpus_per_worker": 0.5},
        {"workers": 2, "memory_gib_per_worker": 4.0},
        {"workers": "auto", "cpus_per_worker": 4},
    ],
)
def test_what_fits_exactly_has_room(asked):
    require_room(Resources(**asked), THERE)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"workers": 5}, "5 training workers with 1 CPUs each, 5 in all, and this machine has 4"),
        ({"workers": 2, "cpus_per_worker": 3}, "3 CPUs each, 6 in all"),
        (
            {"workers": "auto", "cpus_per_worker": 5},
            "workers with 5 CPUs each, 5 in all",
        ),
        ({"gpus_per_worker": 2.0}, "2 GPUs each, 2 in all, and this machine has 1"),
        ({"memory_gib_per_worker": 9.0}, "9 GiB of memory each, 9 in all, and this machine has 8"),
    ],
)
def test_what_cannot_fit_is_refused(asked, words):
    with pytest.raises(UmbraError, match=words):
        require_room(Resources(**asked), THERE)


def test_a_resource_that_is_not_counted_is_not_refused():
    require_room(Resources(memory_gib_per_worker=999.0), {"CPU": 1.0})


def test_this_machine_has_a_processor():
    require_room(Resources(), this_machine())
    with pytest.raises(UmbraError):
        require_room(Resources(workers=100_000), this_machine())


@pytest.mark.slow
def test_ray_counts_in_the_same_units(embedded):
    assert embedded["CPU"] >= 1 and embedded["memory"] > 1024**3 / 4 and "GPU" in embedded
