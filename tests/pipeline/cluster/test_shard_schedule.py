"""The bookkeeping of who makes which shard, without Ray and with a clock that tests turn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cluster.sampling import (
    MAX_DEATHS_PER_SHARD,
    MAX_STARTUP_FAILURES,
    SLOW,
    ShardSchedule,
)
from privacy.errors import UmbraError
from synth.data.shards import plan_shards

ROWS = 10


def _shards(count, rows=ROWS):
    return plan_shards((count * rows,), rows)


@given(st.data(), st.integers(1, 12), st.integers(1, 5))
def test_every_shard_is_recorded_once_whatever_actors_die_or_are_slow(data, shards, most):
    """Actors come, die and end in any order: all shards are made, or the run says why not."""
    schedule, noted, now = ShardSchedule(_shards(shards, 2)), [], 0.0
    actors, working, names = [], {}, iter(range(10**6))
    deaths = dict.fromkeys(range(shards), 0)
    while not schedule.finished:
        now += data.draw(st.floats(0.01, 10))
        while len(actors) < min(most, len(schedule.open_shards)):
            actors.append(next(names))
        for actor in actors:
            if actor not in working and (shard := schedule.take(actor, now)) is not None:
                working[actor] = shard.number
        assert working, "nobody works on what is open"
        assert set(working.values()) <= schedule.open_shards
        actor = data.draw(st.sampled_from(sorted(working)))
        number = working.pop(actor)
        if data.draw(st.booleans()):
            if schedule.done(actor, now):
                noted.append(number)
        else:
            actors.remove(actor)
            deaths[number] += 1
            try:
                schedule.lost(actor)
            except UmbraError as error:
                assert deaths[number] == MAX_DEATHS_PER_SHARD and f"shard {number}," in str(error)
                return
        assert max(deaths.values()) < MAX_DEATHS_PER_SHARD
        for overtaken in schedule.take_back():
            assert working.pop(overtaken) in noted
            actors.remove(overtaken)
    assert sorted(noted) == list(range(shards))
    assert schedule.take("anybody", now) is None


def test_the_shard_of_a_dead_actor_is_next():
    schedule = ShardSchedule(_shards(3))
    assert [schedule.take(name, 0).number for name in "ab"] == [0, 1]
    schedule.lost("a")
    assert [schedule.take(name, 1).number for name in "cd"] == [0, 2]


def test_only_stragglers_are_made_twice_and_never_three_times():
    schedule = ShardSchedule(_shards(4))
    for begun, name in enumerate("abcd"):
        schedule.take(name, begun)
    assert schedule.take("e", 1000) is None, "nothing ended: nobody knows what is slow"
    assert schedule.done("d", 13)  # ten seconds for a shard
    assert schedule.take("d", 10 * SLOW) is None
    assert schedule.take("d", 10 * SLOW + 0.1).number == 0
    assert schedule.take("e", 1000).number == 1
    assert schedule.take("f", 1000).number == 2
    assert schedule.take("g", 1000) is None


def test_a_small_shard_is_slow_sooner_than_a_large_one():
    large, small = plan_shards((ROWS + 1,), ROWS)
    schedule = ShardSchedule([*_shards(1), small, large])
    schedule.take("a", 0)
    schedule.done("a", 10)
    schedule.take("a", 10)
    schedule.take("b", 10)
    assert schedule.take("c", 10 + SLOW + 0.1).number == small.number


def test_the_first_copy_counts_and_the_other_is_dismissed():
    schedule = ShardSchedule(_shards(2))
    schedule.take("stuck", 0)
    schedule.take("quick", 0)
    assert schedule.done("quick", 1)
    assert schedule.take("quick", 100).number == 0
    assert schedule.take_back() == []
    assert schedule.done("quick", 101)
    assert schedule.finished
    assert schedule.take_back() == ["stuck"]


def test_the_second_copy_is_not_recorded():
    schedule = ShardSchedule(_shards(2))
    schedule.take("slow", 0)
    schedule.take("quick", 0)
    schedule.done("quick", 1)
    schedule.take("quick", 100)
    assert schedule.done("slow", 101)
    assert not schedule.done("quick", 102)


def test_death_of_one_copy_leaves_the_other_at_work():
    schedule = ShardSchedule(_shards(2))
    schedule.take("slow", 0)
    schedule.take("quick", 0)
    schedule.done("quick", 1)
    schedule.take("quick", 100)
    schedule.lost("slow")
    assert schedule.take("third", 100.1) is None
    schedule.lost("quick")
    assert schedule.take("third", 100.2).number == 0


def test_a_shard_that_kills_its_actors_ends_the_run():
    schedule = ShardSchedule(_shards(2))
    for name in range(MAX_DEATHS_PER_SHARD - 1):
        assert schedule.take(name, 0).number == 0
        schedule.lost(name)
    schedule.take("last", 0)
    with pytest.raises(UmbraError, match=r"over shard 0, .*more memory.*`umbra resume`"):
        schedule.lost("last")


def test_repeated_startup_failures_end_the_run_unless_shards_are_made_between():
    schedule = ShardSchedule(_shards(1))
    for name in range(MAX_STARTUP_FAILURES - 1):
        schedule.lost(name)
    schedule.take("good", 0)
    schedule.done("good", 1)
    for name in range(MAX_STARTUP_FAILURES - 1):
        schedule.lost(name)
    with pytest.raises(UmbraError, match="died before they could begin"):
        schedule.lost("last")
