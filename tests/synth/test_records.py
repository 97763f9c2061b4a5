import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from privacy.errors import InvalidRequest
from privacy.keystream import derive, words_at
from synth.preconditioning import EDM, V
from synth.records import NoisedViews, Records, normal, uniform
from tests.builders import images_of, part_of, records_of

KEY = bytes(range(32))
N, K, NULL = 30, 5, 3


def make_records(n=N):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (n, 6, 6, 1), dtype=np.uint8)
    return records_of(images, generator.integers(0, NULL, n))


def drawer(**changes):
    return NoisedViews(
        **{"preconditioning": EDM(), "K": K, "label_dropout": 0.3, "null": NULL} | changes
    )


def views(step=0, ids=None, positions=None, records=None, **changes):
    part = part_of(records or make_records(), np.arange(N) if ids is None else ids)
    positions = np.arange(len(part)) if positions is None else positions
    drawn = drawer(**{"key": KEY, "attempt": 1} | changes)
    return drawn.for_step(step, part)(np.asarray(positions))


def normals(drawn):
    """Return the noise of views before it was scaled."""
    return drawn[3] / drawn[2][:, :, None, None, None]


def correlation(a, b):
    return abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


class TestRecords:
    def test_are_scaled_by_their_type_and_not_by_their_values(self):
        images = np.array([100, 110, 120], dtype=np.uint8).reshape(3, 1, 1, 1)
        records = records_of(images, np.array([0, 1, 0]))
        expected = images.reshape(-1).astype(np.float64) / 127.5 - 1
        np.testing.assert_allclose(images_of(records).reshape(-1), expected, atol=1e-7)
        assert len(records) == 3
        assert records.labels.tolist() == [0, 1, 0]

    def test_channels_come_first(self):
        images = np.zeros((2, 4, 5, 3), dtype=np.uint8)
        images[1, 2, 3, 1] = 255
        records = records_of(images, np.array([0, 1]))
        assert records.shape == (3, 4, 5)
        assert images_of(records).shape == (2, 3, 4, 5)
        assert images_of(records)[1, 1, 2, 3] == 1

    def test_are_held_as_bytes_and_taken_as_floats(self):
        records = make_records()
        assert records.values.dtype == torch.uint8
        images, labels = records.take(np.array([7, 2, 7]))
        assert images.dtype == torch.float32
        assert torch.equal(images, images_of(records)[[7, 2, 7]])
        assert torch.equal(labels, records.labels[[7, 2, 7]])

    def test_take_no_memory_beside_what_was_loaded(self):
        values = np.zeros((4, 3, 3, 1), dtype=np.uint8)
        records = records_of(values, np.zeros(4, dtype=np.int64))
        values[2] = 255
        assert (records.take(np.array([2]))[0] == 1).all()

    def test_show_nothing_of_themselves(self):
        records = records_of(np.full((2, 2, 2, 1), 123, np.uint8), np.array([77, 78]), ids=[99, 98])
        for secret in ("123", "77", "99", "tensor", "array"):
            assert secret not in repr(records)

    @pytest.mark.parametrize(
        ("values", "labels", "ids"),
        [
            (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2), np.arange(2)),
            (torch.zeros(2, 4, 4, 1), torch.zeros(2), np.arange(2)),
            (torch.zeros(2, 4, 4, 1, dtype=torch.uint8), torch.zeros(3), np.arange(2)),
            (torch.zeros(2, 4, 4, 1, dtype=torch.uint8), torch.zeros(2, 1), np.arange(2)),
            (torch.zeros(2, 4, 4, 1, dtype=torch.uint8), torch.zeros(2), np.arange(3)),
        ],
    )
    def test_need_a_label_and_an_id_each(self, values, labels, ids):
        with pytest.raises(InvalidRequest):
            Records(values, labels, ids.astype(np.uint64), 2)

    def test_need_ids_that_hold_64_bits(self):
        with pytest.raises(InvalidRequest, match="uint64"):
            Records(torch.zeros(2, 4, 4, 1, dtype=torch.uint8), torch.zeros(2), np.arange(2), 2)


class TestNoisedViews:
    def test_gives_every_record_its_own_views(self):
        records = make_records()
        images, labels, sigma, noise = views(records=records, positions=[4, 17])
        assert torch.equal(images, images_of(records)[[4, 17]])
        assert labels.shape == (2,)
        assert sigma.shape == (2, K)
        assert noise.shape == (2, K, 1, 6, 6)
        assert len(torch.unique(sigma)) == 2 * K
        assert len(torch.unique(noise)) == noise.numel()

    def test_a_view_does_not_depend_on_the_worker_or_the_micro_batch(self):
        whole = views()
        for rank in range(3):
            owned = np.arange(rank, N, 3)
            for positions in ([0], [7, 2], list(range(len(owned)))):
                mine = views(ids=owned, positions=positions)
                for part, all_of_it in zip(mine, whole, strict=True):
                    assert torch.equal(part, all_of_it[owned[positions]])

    @pytest.mark.parametrize(
        "change", [{"step": 1}, {"attempt": 2}, {"key": KEY[::-1]}], ids=lambda c: next(iter(c))
    )
    def test_step_attempt_and_run_have_their_own(self, change):
        mine, theirs = normals(views()), normals(views(**change))
        assert correlation(mine, theirs) < 6 / mine.numel() ** 0.5
        assert not (views()[2] == views(**change)[2]).any()

    def test_records_and_views_have_their_own(self):
        drawn = normals(views())
        for mine, theirs in ((drawn[:-1], drawn[1:]), (drawn[:, :-1], drawn[:, 1:])):
            assert correlation(mine, theirs) < 6 / mine.numel() ** 0.5

    def test_a_records_label_levels_and_noise_do_not_go_together(self):
        dropped, level, noise = [], [], []
        for step in range(200):
            drawn = views(step=step)
            dropped.append((drawn[1] == NULL).double())
            level.append(drawn[2][:, 0].double().log())
            noise.append(normals(drawn)[:, 0, 0, 0, 0].double())
        parts = [torch.stack(part) for part in (dropped, level, noise)]
        for a, b in itertools.combinations(parts, 2):
            assert correlation(a, b) < 6 / a.numel() ** 0.5

    def test_are_the_numbers_of_the_records_word(self):
        """What is drawn, and under what seed, put together anew for one record."""
        step, record, config = 3, 11, EDM()
        words = words_at(derive(KEY, "umbra/views/2", 1, step), np.array([record]))
        seed = torch.from_numpy(words.astype(np.int64))
        _, labels, sigma, noise = views(step=step, positions=[record])
        assert bool(labels[0] == NULL) == bool(uniform(seed, 0, ())[0] < 0.3)
        expected = stats.lognorm(s=config.p_std, scale=np.exp(config.p_mean))
        np.testing.assert_allclose(sigma, expected.ppf(uniform(seed, 1, (K,))), rtol=1e-6)
        z = normal(seed, 2, (K, 1, 6, 6))
        torch.testing.assert_close(noise, z * sigma[:, :, None, None, None])

    def test_of_no_record_are_none(self):
        images, labels, sigma, noise = views(positions=np.array([], dtype=np.int64))
        assert images.shape == (0, 1, 6, 6)
        assert labels.shape == (0,)
        assert sigma.shape == (0, K)
        assert noise.shape == (0, K, 1, 6, 6)

    @pytest.mark.parametrize("bad", [0, -1, 1.5, True])
    def test_a_bad_multiplicity_is_refused(self, bad):
        with pytest.raises(InvalidRequest, match="multiplicity"):
            drawer(key=KEY, K=bad)

    def test_follow_the_configs_noise_levels(self):
        records = make_records()
        config = EDM()
        sigmas = torch.cat([views(step=s, records=records)[2].flatten() for s in range(30)])
        log = sigmas.double().log()
        error = 6 / len(log) ** 0.5
        assert abs(log.mean() - config.p_mean) < error * config.p_std
        assert abs(log.std() - config.p_std) < error * config.p_std
        scaled = normals(views(preconditioning=V())).double()
        assert abs(scaled.mean()) < 6 / scaled.numel() ** 0.5
        assert abs(scaled.std() - 1) < 6 / scaled.numel() ** 0.5

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_on_a_gpu_they_are_drawn_there_and_are_the_same(self):
        records = make_records()
        there = Records(records.values.cuda(), records.labels.cuda(), records.ids, records.total)
        whole, here = views(records=there), views(records=records)
        assert all(part.is_cuda for part in whole)
        images, labels, sigma, _ = (part.cpu() for part in whole)
        assert torch.equal(images, here[0])
        assert torch.equal(labels, here[1])
        torch.testing.assert_close(sigma, here[2], rtol=1e-5, atol=0)
        torch.testing.assert_close(normals(whole).cpu(), normals(here), rtol=1e-5, atol=1e-5)
        mine = views(records=there, positions=[7, 2])
        assert all(
            torch.equal(part, all_of_it[[7, 2]])
            for part, all_of_it in zip(mine, whole, strict=True)
        )

    def test_labels_are_dropped_at_their_rate_and_else_kept(self):
        records = make_records()
        labels = torch.stack([views(step=s, records=records)[1] for s in range(100)])
        dropped = labels == NULL
        rate = dropped.double().mean()
        assert abs(rate - 0.3) < 6 * (0.3 * 0.7 / labels.numel()) ** 0.5
        assert torch.equal(labels[~dropped], records.labels.expand_as(labels)[~dropped])
        assert torch.equal(views(label_dropout=0.0)[1], records.labels)
        assert (views(label_dropout=1.0)[1] == NULL).all()

    def test_one_record_has_no_influence_on_anothers_views(self):
        """What a record does to a step stays within what is clipped."""
        records = make_records()
        values = records.values.clone()
        values[5] = 255 - values[5]
        other = Records(values, (records.labels + 1) % NULL, records.ids, records.total)
        rest = [i for i in range(N) if i != 5]
        _, _, sigma, noise = views(records=records, positions=rest)
        _, _, other_sigma, other_noise = views(records=other, positions=rest)
        assert torch.equal(sigma, other_sigma)
        assert torch.equal(noise, other_noise)

    def test_the_key_is_not_shown(self):
        assert repr(KEY) not in repr(drawer(key=KEY))

    def test_leaves_torchs_own_generator_alone(self):
        before = torch.get_rng_state()
        views()
        assert torch.equal(torch.get_rng_state(), before)
