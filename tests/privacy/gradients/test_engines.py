import copy
import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from privacy.clipping import add_to
from privacy.errors import InvalidRequest
from privacy.gradients import ENGINES, choose, grad_samplers
from privacy.gradients.base import refuse_record_mixing

N, K, CHANNELS, SIZE, CLASSES = 5, 3, 3, 8, 4
C = 0.7


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(CHANNELS, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False)
        self.outer = nn.Conv2d(6, CHANNELS, 1)

    def forward(self, x, sigma, label):
        return self.outer(torch.tanh(self.grouped(self.inner(x))))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(CHANNELS * SIZE * SIZE + 1, 5)
        self.outer = nn.Linear(5, CHANNELS * SIZE * SIZE, bias=False)

    def forward(self, x, sigma, label):
        hidden = self.inner(torch.cat([x.flatten(1), sigma[:, None]], dim=1))
        return self.outer(F.silu(hidden)).reshape(x.shape)


class Labelled(nn.Module):
    """An embedding, a buffer that is only read, and a parameter without dimensions."""

    def __init__(self):
        super().__init__()
        self.register_buffer("frequencies", torch.tensor([1.0, 2.0, 4.0]))
        self.classes = nn.Embedding(CLASSES, 6)
        self.mix = nn.Linear(6, CHANNELS)
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, sigma, label):
        angle = sigma[:, None] * self.frequencies
        code = torch.cat([angle.sin(), angle.cos()], dim=1) + self.classes(label)
        return self.scale * x + self.mix(F.silu(code))[:, :, None, None]


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(CHANNELS, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.layer = nn.LayerNorm([8, SIZE, SIZE])
        self.outer = nn.Conv2d(8, CHANNELS, 3, padding=1)

    def forward(self, x, sigma, label):
        return self.outer(F.silu(self.layer(self.norm(self.inner(x)))))


class Attention(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        self.norm = nn.GroupNorm(1, CHANNELS)
        self.qkv = nn.Conv2d(CHANNELS, 12, 1)
        self.outer = nn.Conv2d(4, CHANNELS, 1)

    def forward(self, x, sigma, label):
        views, _, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(views, 3, 2, 2, -1).mT.unbind(1)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = torch.softmax(q @ k.mT / math.sqrt(2), dim=-1) @ v
        return x + self.outer(mixed.mT.reshape(views, 4, height, width))


class UpDown(nn.Module):
    """Residual blocks down and up as in a U-Net, with a skip sum scaled by 1/sqrt(2)."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 4, 3, padding=1)
        self.strided = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.leave = nn.Conv2d(8, CHANNELS, 3, padding=1)

    def forward(self, x, sigma, label):
        h = self.enter(x)
        low = (F.avg_pool2d(h, 2) + self.down(F.avg_pool2d(F.silu(h), 2))) / math.sqrt(2)
        low = self.up(self.strided(low))
        high = F.interpolate(low, scale_factor=2, mode="nearest")
        return self.leave(torch.cat([h, high], dim=1))


class Tied(nn.Module):
    """One weight used twice, one parameter never used and one frozen."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(SIZE, SIZE)
        self.second = nn.Linear(SIZE, SIZE, bias=False)
        self.second.weight = self.first.weight
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Linear(SIZE, SIZE).requires_grad_(False)

    def forward(self, x, sigma, label):
        return self.frozen(self.second(torch.tanh(self.first(x))))


MODELS = {
    "convolution": Convolution,
    "dense": Dense,
    "labelled": Labelled,
    "normed": Normed,
    "softmax attention": lambda: Attention(False),
    "fused attention": lambda: Attention(True),
    "up and down": UpDown,
    "tied": Tied,
}


def denoising_loss(model, image, label, sigma, noise):
    noised = image + sigma[:, None, None, None] * noise
    denoised = model(noised, sigma, label.expand(len(sigma)))
    return ((denoised - image) ** 2).sum(dim=(1, 2, 3)).mul(1 / sigma**2).mean()


def make_model(name, dtype=torch.float64):
    torch.manual_seed(0)
    return MODELS[name]().to(dtype)


def make_records(n=N, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    sigma = torch.rand(n, K, generator=generator) + 0.5
    noise = torch.randn(n, K, CHANNELS, SIZE, SIZE, generator=generator)
    # Some records far below the clip norm and some far above.
    image = torch.rand(n, CHANNELS, SIZE, SIZE, generator=generator)
    label = torch.arange(n) % CLASSES
    return image.to(dtype), label, sigma.to(dtype), noise.to(dtype)


def sum_of_clipped(engine, model, loss, records, clip_norm, micro_batch):
    """The engine's sum over the records, a micro-batch at a time."""
    first, *others = zip(*(part.split(micro_batch) for part in records), strict=True)
    sums = engine.sum_of_clipped(model, loss, first, clip_norm, micro_batch)
    for part in others:
        add_to(sums, engine.sum_of_clipped(model, loss, part, clip_norm, micro_batch))
    return sums


def naive(model, records, clip_norm):
    """Float64, record by record and view by view, in the plainest torch there is."""
    model = copy.deepcopy(model).double()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in named.items()}
    norms = []
    for image, label, sigma, noise in zip(*records, strict=True):
        model.zero_grad()
        loss = 0.0
        for k in range(K):
            noised = image.double() + sigma[k].double() * noise[k].double()
            denoised = model(noised[None], sigma[k : k + 1].double(), label[None])[0]
            loss += ((denoised - image.double()) ** 2).sum() / sigma[k].double() ** 2 / K
        loss.backward()
        found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named.items()}
        norm = math.sqrt(sum(float((g**2).sum()) for g in found.values()))
        for name, gradient in found.items():
            sums[name] += gradient * min(1.0, clip_norm / norm)
        norms.append(norm)
    return sums, norms


def flat(sums):
    return torch.cat([total.flatten() for total in sums.values()])


def assert_close(sums, expected, rel):
    assert sums.keys() == expected.keys()
    for name, total in sums.items():
        assert total.dtype == torch.float64
        assert total.shape == expected[name].shape
        assert (total - expected[name]).norm() <= rel * expected[name].norm() + 1e-12, name


@pytest.fixture(params=sorted(ENGINES))
def engine(request):
    return ENGINES[request.param]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_sums_are_those_of_the_naive_reference(engine, name):
    model, records = make_model(name), make_records()
    norms = naive(model, records, 1.0)[1]
    clip_norm = sorted(norms)[N // 2]  # some records are clipped and some are not
    found = sum_of_clipped(engine, model, denoising_loss, records, clip_norm, micro_batch=2)
    assert_close(found, naive(model, records, clip_norm)[0], rel=1e-9)
    assert not any(total.requires_grad for total in found.values())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_float32_models_agree_up_to_float32(engine, name):
    model, records = make_model(name, torch.float32), make_records(dtype=torch.float32)
    found = sum_of_clipped(engine, model, denoising_loss, records, C, micro_batch=8)
    assert_close(found, naive(model, records, C)[0], rel=2e-5)


@pytest.mark.parametrize("records", [1, 2, N])
@pytest.mark.parametrize("engine", ["layerwise", "captured", "two-pass"], indirect=True)
def test_the_number_of_records_in_a_grouped_convolution_does_not_change_the_sums(
    engine, monkeypatch, records
):
    """In one grouped convolution; the last ones are fewer."""
    monkeypatch.setattr(grad_samplers, "_SIDE_BY_SIDE", 8 * SIZE**2 * records)
    for name in ("convolution", "normed", "up and down"):
        model = make_model(name)
        found = sum_of_clipped(engine, model, denoising_loss, make_records(), C, micro_batch=N)
        assert_close(found, naive(model, make_records(), C)[0], rel=1e-9)


@pytest.mark.parametrize("micro_batch", [1, N, 100])
def test_the_micro_batch_does_not_change_the_sums(engine, micro_batch):
    model, records = make_model("convolution"), make_records()
    found = sum_of_clipped(engine, model, denoising_loss, records, C, micro_batch)
    assert_close(found, naive(model, records, C)[0], rel=1e-9)


def test_a_record_is_clipped_once_and_not_once_a_view(engine):
    """Views that pass as records are clipped each on its own: the sensitivity becomes K C."""
    model, (image, label, sigma, noise) = make_model("normed"), make_records(1)
    one = sum_of_clipped(engine, model, denoising_loss, (image, label, sigma, noise), C, 8)
    assert naive(model, (image, label, sigma, noise), C)[1][0] > C
    assert flat(one).norm() == pytest.approx(C, rel=1e-6)
    views = (
        image.expand(K, -1, -1, -1),
        label.expand(K),
        sigma[0, :, None],
        noise[0, :, None],
    )
    wrong = sum_of_clipped(engine, model, denoising_loss, views, C, 8)
    assert flat(wrong).norm() > 1.5 * C
    for of_views in (flat(wrong), flat(wrong) / K):
        assert (of_views - flat(one)).norm() > 1e-3 * C


def test_the_norm_is_joint_over_all_parameters(engine):
    model, records = make_model("normed"), make_records(1)
    found = sum_of_clipped(engine, model, denoising_loss, records, C, 8)
    assert sum(total.norm() ** 2 for total in found.values()) <= C**2 * (1 + 1e-6)
    assert max(total.norm() for total in found.values()) < 0.999 * C


EXTREMES = st.one_of(
    st.floats(width=32),
    st.sampled_from([0.0, 1e-38, 1e19, 1e38, -3e38, math.nan, math.inf, -math.inf]),
)


# What the others add may be rounded another way beside the new record, in the model's type.
SLACK = {torch.float32: 1e-5, torch.float64: 1e-12}


@settings(max_examples=10)
@given(EXTREMES, EXTREMES, st.floats(1e-3, 1e3), st.integers(0, N), st.booleans())
@pytest.mark.parametrize("dtype", sorted(SLACK, key=str))
@pytest.mark.parametrize("name", ["normed", "labelled"])
def test_no_record_moves_the_sum_further_than_the_clip_norm(
    name, dtype, fill, spot, C, place, clean
):
    model, others = make_model(name, dtype), make_records(dtype=dtype)
    new = make_records(1, dtype, seed=2)
    new[0][:] = fill
    new[0][0, 0, 0, 0] = spot
    if not clean:
        new[3][0, 0, 0, 1, 1] = spot
    both = tuple(torch.cat([o[:place], x, o[place:]]) for o, x in zip(others, new, strict=True))
    for engine in ENGINES.values():
        alone, without, including = (
            flat(sum_of_clipped(engine, model, denoising_loss, records, C, N + 1))
            for records in (new, others, both)
        )
        assert alone.norm() <= C * (1 + 1e-6)
        moved = (including - without).norm().item()
        assert moved <= C * (1 + 1e-6 + N * SLACK[dtype])
        if not alone.any():
            assert moved <= C * N * SLACK[dtype]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e38])
def test_records_that_are_not_finite_add_exactly_zero(engine, bad):
    model, records = make_model("normed", torch.float32), make_records(dtype=torch.float32)
    records[0][:, 0, 0, 0] = bad
    found = sum_of_clipped(engine, model, denoising_loss, records, C, 2)
    assert not flat(found).any()


def test_a_record_that_is_not_finite_leaves_the_others_alone(engine):
    model, records = make_model("up and down"), make_records()
    kept = [0, 1, 3, 4]
    expected = naive(model, tuple(part[kept] for part in records), C)[0]
    records[0][2, 0, 0, 0] = math.nan
    found = sum_of_clipped(engine, model, denoising_loss, records, C, 4)
    assert_close(found, expected, rel=1e-9)


def test_finite_losses_with_gradients_that_are_not_finite_add_zero(engine):
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return (x * self.a).abs().sqrt()

    records = (torch.tensor([1.0, 2.0]),)
    found = sum_of_clipped(engine, Root(), lambda model, x: model(x).sum(), records, C, 2)
    assert found["a"].tolist() == [0.0, 0.0]


def test_an_empty_batch_returns_zeros_of_the_parameters_shapes(engine):
    model = make_model("labelled", torch.float32)
    found = engine.sum_of_clipped(model, denoising_loss, make_records(0, torch.float32), C, 4)
    assert {n: t.shape for n, t in found.items()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    assert all(t.dtype == torch.float64 and not t.any() for t in found.values())


def test_only_trainable_parameters_have_sums(engine):
    model = make_model("tied")
    found = sum_of_clipped(engine, model, denoising_loss, make_records(), C, 4)
    assert set(found) == {"first.weight", "first.bias", "unused"}
    assert not found["unused"].any()


def test_the_model_is_unchanged(engine):
    model = make_model("labelled").eval()
    before = copy.deepcopy(model.state_dict())
    model.mix.weight.grad = torch.ones_like(model.mix.weight)
    with torch.no_grad():
        engine.sum_of_clipped(model, denoising_loss, make_records(), C, N)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model.mix.weight.grad, torch.ones_like(model.mix.weight))
    assert model.classes.weight.grad is None
    assert not model.training


def test_dropout_is_drawn_for_each_record(engine):
    model = nn.Sequential(nn.Linear(50, 1), nn.Dropout(0.5))
    records = (torch.ones(20, 50),)
    found = sum_of_clipped(engine, model, lambda m, x: m(x[None]).sum(), records, C, 20)
    # A record that is not dropped adds C, and all of them in one direction.
    assert 0.5 < flat(found).norm() / C < 19.5


MIXING = {
    "batch norm": nn.BatchNorm2d(4),
    "batch norm without statistics": nn.BatchNorm1d(4, track_running_stats=False),
    "batch norm of an unset flag": nn.BatchNorm2d(4, track_running_stats=None),
    "lazy batch norm": nn.LazyBatchNorm3d(),
    "synchronised batch norm": nn.SyncBatchNorm(4),
    "instance norm with statistics": nn.InstanceNorm2d(4, track_running_stats=True),
}


@pytest.mark.parametrize("layer", sorted(MIXING))
@pytest.mark.parametrize("training", [True, False])
def test_layers_that_mix_records_are_refused(engine, layer, training):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(MIXING[layer])).train(training)
    with pytest.raises(InvalidRequest, match=r"'1\.0'.*use GroupNorm"):
        refuse_record_mixing(model)
    for n in (0, 2):
        with pytest.raises(InvalidRequest, match="GroupNorm"):
            engine.sum_of_clipped(model, denoising_loss, (torch.zeros(n, 4),), C, 4)


def test_layers_that_keep_records_apart_are_admitted():
    layers = [nn.GroupNorm(1, 4), nn.LayerNorm(4), nn.InstanceNorm2d(4, affine=True)]
    refuse_record_mixing(nn.Sequential(*layers))


class Counting(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.linear = nn.Linear(4, 1)
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        if self.in_place:
            self.seen.add_(x.detach())
        else:
            self.seen = self.seen + x.detach()
        return self.linear(x)


@pytest.mark.parametrize("in_place", [True, False])
def test_buffers_that_remember_records_are_refused(engine, in_place):
    with pytest.raises((InvalidRequest, RuntimeError), match=r"buffer|in-?place|broadcast"):
        engine.sum_of_clipped(
            Counting(in_place), lambda m, x: m(x).sum(), (torch.ones(2, 4),), C, 4
        )


def test_a_loss_for_each_view_is_refused(engine):
    with pytest.raises(InvalidRequest, match="one scalar"):
        engine.sum_of_clipped(nn.Linear(4, 3), lambda model, x: model(x), (torch.ones(2, 4),), C, 4)


@pytest.mark.parametrize("records", [(), (torch.tensor(1.0),), (torch.zeros(2, 4), torch.zeros(3))])
def test_records_of_different_lengths_are_refused(engine, records):
    with pytest.raises(InvalidRequest, match="leading dimension"):
        engine.sum_of_clipped(nn.Linear(4, 1), denoising_loss, records, C, 4)


@pytest.mark.parametrize("micro_batch", [0, -1, 2.0, True])
def test_impossible_micro_batches_are_refused(engine, micro_batch):
    with pytest.raises(InvalidRequest, match="micro-batch"):
        engine.sum_of_clipped(nn.Linear(4, 1), denoising_loss, (torch.zeros(0, 4),), C, micro_batch)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("n", [0, 2])
def test_impossible_clip_norms_are_refused(engine, clip_norm, n):
    with pytest.raises(InvalidRequest, match="clip norm"):
        engine.sum_of_clipped(nn.Linear(4, 1), denoising_loss, (torch.zeros(n, 4),), clip_norm, 4)


def test_a_model_without_trainable_parameters_is_refused(engine):
    model = nn.Linear(4, 1).requires_grad_(False)
    with pytest.raises(InvalidRequest, match="nothing to train"):
        engine.sum_of_clipped(model, denoising_loss, (torch.zeros(2, 4),), C, 4)


def test_more_records_than_a_micro_batch_are_refused(engine):
    with pytest.raises(InvalidRequest, match="at most 2 records"):
        engine.sum_of_clipped(nn.Linear(4, 1), denoising_loss, (torch.zeros(3, 4),), C, 2)


@pytest.mark.parametrize(
    ("pixels", "views", "device", "precision", "name"),
    [
        (28 * 28, 16, "cpu", "float32", "record"),
        (28 * 28, 32, "cpu", "bfloat16", "layerwise"),
        (28 * 28, 8, "cpu", "float32", "layerwise"),
        (8 * 8, 8, "cpu", "float32", "layerwise"),
        (28 * 28, 32, "cuda", "bfloat16", "captured"),
        (8 * 8, 8, "cuda", "float32", "captured"),
    ],
)
def test_the_choice_depends_on_public_sizes(pixels, views, device, precision, name):
    assert choose(pixels, views, device, precision).name == name


def test_no_two_trainings_on_gpus_share_a_graph():
    one, other = (choose(64, 8, "cuda", "float32") for _ in range(2))
    assert one is not other
    assert ENGINES["captured"] not in (one, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", sorted(MODELS))
def test_sums_on_a_gpu_are_those_of_the_naive_reference(engine, name):
    model, records = make_model(name), make_records()
    on_gpu = tuple(part.cuda() for part in records)
    found = sum_of_clipped(engine, copy.deepcopy(model).cuda(), denoising_loss, on_gpu, C, 2)
    assert all(total.is_cuda for total in found.values())
    expected = naive(model, records, C)[0]
    assert_close({n: t.cpu() for n, t in found.items()}, expected, rel=1e-9)
