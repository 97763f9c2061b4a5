"""Train on one set, choose the epoch on its held-out tenth, test on another."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

from eval.utility import CLASSIFIERS, split, train_and_test


@pytest.mark.parametrize(
    ("name", "epochs", "least"), [("logreg", 30, 0.9), ("mlp", 20, 0.93), ("cnn", 15, 0.93)]
)
def test_real_on_real_is_learned(digits, name, epochs, least):
    result = train_and_test(name, *digits, classes=10, epochs=epochs, learning_rate=3e-3)
    assert result.name == name
    assert result.accuracy > least
    assert result.validation_accuracy > least


def test_permuted_labels_give_chance(digits):
    labels = np.random.default_rng(1).permutation(digits.train_labels)
    result = train_and_test(
        "mlp",
        digits.train_images,
        labels,
        digits.test_images,
        digits.test_labels,
        classes=10,
        epochs=15,
        learning_rate=3e-3,
    )
    assert abs(result.accuracy - 0.1) < 0.08


def test_confusion_counts_every_test_image_once(digits):
    result = train_and_test("logreg", *digits, classes=10, epochs=2)
    confusion = np.array(result.confusion)
    assert confusion.sum(axis=1).tolist() == np.bincount(digits.test_labels).tolist()
    assert result.accuracy == pytest.approx(confusion.trace() / len(digits.test_labels))
    for label, accuracy in enumerate(result.per_class):
        assert accuracy == pytest.approx(confusion[label, label] / confusion[label].sum())


def test_confusion_rows_are_true_and_columns_predicted(monkeypatch):
    class ReadsPixel(nn.Module):
        """Predicts the class written in the pixel, so errors are where they were planted."""

        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.ones(1))

        def forward(self, x):
            written = ((x.flatten(1)[:, 0] + 1) * 127.5).round().long()
            return nn.functional.one_hot(written, 3).float() * self.unused

    monkeypatch.setitem(CLASSIFIERS, "planted", lambda *_: ReadsPixel())
    train = np.zeros((20, 1, 1, 1), np.uint8)
    test = np.array([0, 1, 1, 1], np.uint8).reshape(-1, 1, 1, 1)
    labels = np.array([0, 0, 0, 1])
    result = train_and_test(
        "planted", train, np.zeros(20, np.int64), test, labels, classes=3, epochs=3
    )
    assert result.confusion == ((1, 2, 0), (0, 1, 0), (0, 0, 0))
    assert result.per_class == (1 / 3, 1.0, None)
    assert result.accuracy == 0.5
    assert (result.chosen_epoch, result.validation_accuracy) == (1, 1.0), "the first of equals"


def half_bright(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Class 1 is a little brighter than class 0: learned slowly, never at once."""
    labels = rng.integers(0, 2, count)
    pixels = rng.normal(120 + 16 * labels[:, None], 20, (count, 16)).clip(0, 255)
    return pixels.round().astype(np.uint8).reshape(count, 4, 4, 1), labels


def test_epoch_is_chosen_by_the_synthetic_tenth_alone():
    """The held-out tenth is labelled the other way round, so its best epoch is an early one.

    Training and test accuracy both rise to the last epochs: an implementation that looked at either
    would choose late.
    """
    rng = np.random.default_rng(3)
    images, labels = half_bright(1000, rng)
    test = half_bright(1000, rng)
    settings = {"classes": 2, "learning_rate": 2e-4, "seed": 5}
    straight = train_and_test("logreg", images, labels, *test, epochs=12, **settings)
    assert straight.chosen_epoch > 3

    _, held_out = split(len(images), seed=5)
    planted = labels.copy()
    planted[held_out] = 1 - planted[held_out]
    upset = train_and_test("logreg", images, planted, *test, epochs=12, **settings)
    assert upset.chosen_epoch < straight.chosen_epoch
    assert upset.accuracy < straight.accuracy

    # The weights tested are those of the chosen epoch, not the last: training that ends there
    # is the beginning of the longer one.
    ended = train_and_test("logreg", images, planted, *test, epochs=upset.chosen_epoch, **settings)
    assert upset == ended


def test_test_set_touches_neither_choice_nor_validation():
    rng = np.random.default_rng(4)
    train = half_bright(300, rng)
    images, labels = half_bright(100, rng)
    first = train_and_test("logreg", *train, images, labels, classes=2, epochs=8)
    second = train_and_test("logreg", *train, images, 1 - labels, classes=2, epochs=8)
    assert first.chosen_epoch == second.chosen_epoch
    assert first.validation_accuracy == second.validation_accuracy
    assert first.accuracy == pytest.approx(1 - second.accuracy)


def test_matches_a_naive_softmax_regression(monkeypatch):
    """Float64 numpy from zero weights, whole batches: the same epoch and confusion matrix."""

    def zeroed(height, width, channels, classes):
        linear = nn.Linear(height * width * channels, classes)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        return nn.Sequential(nn.Flatten(), linear)

    monkeypatch.setitem(CLASSIFIERS, "zeroed", zeroed)
    rng = np.random.default_rng(8)
    images, labels = half_bright(400, rng)
    test_images, test_labels = half_bright(300, rng)
    result = train_and_test(
        "zeroed",
        images,
        labels,
        test_images,
        test_labels,
        classes=2,
        epochs=10,
        learning_rate=1e-3,
        batch_size=400,
        seed=2,
    )

    def inputs(x: np.ndarray) -> np.ndarray:
        flat = x.reshape(len(x), -1) / 127.5 - 1
        return np.hstack([flat, np.ones((len(x), 1))])

    rows, held_out = split(400, seed=2)
    x, targets = inputs(images[rows]), np.eye(2)[labels[rows]]
    W, m, v = np.zeros((17, 2)), np.zeros((17, 2)), np.zeros((17, 2))
    best = (0, -1.0, W)
    for epoch in range(1, 11):
        p = np.exp(x @ W)
        p /= p.sum(axis=1, keepdims=True)
        gradient = x.T @ (p - targets) / len(x)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        W = W - 1e-3 * (m / (1 - 0.9**epoch)) / (np.sqrt(v / (1 - 0.999**epoch)) + 1e-8)
        accuracy = float(((inputs(images[held_out]) @ W).argmax(1) == labels[held_out]).mean())
        if accuracy > best[1]:
            best = (epoch, accuracy, W)
    predicted = (inputs(test_images) @ best[2]).argmax(1)
    confusion = [
        [int(((test_labels == i) & (predicted == j)).sum()) for j in (0, 1)] for i in (0, 1)
    ]
    assert (result.chosen_epoch, result.validation_accuracy) == best[:2]
    assert [list(row) for row in result.confusion] == confusion


def test_network_sees_scaled_batches_and_dropout_only_in_training(monkeypatch):
    seen: list[tuple[bool, int, float, float]] = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2 * 3 * 3, 4)

        def forward(self, x):
            assert x.shape[1:] == (3, 2, 3)
            assert x.dtype == torch.float32
            seen.append((self.training, len(x), float(x.min()), float(x.max())))
            return self.linear(x.flatten(1))

    monkeypatch.setitem(CLASSIFIERS, "spy", lambda *_: Spy())
    images = np.zeros((50, 2, 3, 3), np.uint8)
    images[:, 0, 0, 0] = 255
    labels = np.zeros(50, np.int64)
    train_and_test(
        "spy", images, labels, images[:7], labels[:7], classes=4, epochs=2, batch_size=20
    )
    epoch = [(True, 20), (True, 20), (True, 5), (False, 5)]
    assert [entry[:2] for entry in seen] == [*epoch, *epoch, (False, 7)]
    assert all(entry[2:] == (-1.0, 1.0) for entry in seen)


def test_every_training_image_is_drawn_once_an_epoch(monkeypatch):
    drawn: list[int] = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(1, 2)

        def forward(self, x):
            if self.training:
                drawn.extend(((x.flatten() + 1) * 127.5).round().int().tolist())
            return self.linear(x.flatten(1))

    monkeypatch.setitem(CLASSIFIERS, "spy", lambda *_: Spy())
    images = np.arange(100, dtype=np.uint8).reshape(-1, 1, 1, 1)
    labels = np.zeros(100, np.int64)
    train_and_test(
        "spy", images, labels, images, labels, classes=2, epochs=2, batch_size=16, seed=1
    )
    rows = sorted(split(100, seed=1)[0].tolist())
    assert sorted(drawn[:90]) == rows
    assert sorted(drawn[90:]) == rows
    assert drawn[:90] != drawn[90:]


def test_split_is_a_seeded_tenth():
    train, held_out = split(205, seed=3)
    assert (len(train), len(held_out)) == (185, 20)
    assert sorted([*train, *held_out]) == list(range(205))
    assert np.array_equal(split(205, seed=3)[1], held_out)
    assert not np.array_equal(split(205, seed=4)[1], held_out)
    with pytest.raises(ValueError, match="at least 10"):
        split(9, seed=0)


def test_same_seed_same_result_whatever_the_global_state(digits):
    torch.manual_seed(1)
    first = train_and_test("cnn", *digits, classes=10, epochs=2, learning_rate=1e-3, seed=7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = train_and_test("cnn", *digits, classes=10, epochs=2, learning_rate=1e-3, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    other = train_and_test("cnn", *digits, classes=10, epochs=2, learning_rate=1e-3, seed=8)
    assert first == second
    assert first.confusion != other.confusion


def test_seed_reaches_the_initial_weights(monkeypatch, digits):
    drawn: list[torch.Tensor] = []

    def recorded(*shape):
        network = linear(*shape)
        drawn.append(network[1].weight.detach().clone())
        return network

    linear = CLASSIFIERS["logreg"]
    monkeypatch.setitem(CLASSIFIERS, "logreg", recorded)
    for seed in (1, 2, 1):
        train_and_test("logreg", *digits, classes=10, epochs=1, seed=seed)
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_result_is_json(digits):
    result = train_and_test("logreg", *digits, classes=12, epochs=3)
    record = json.loads(json.dumps(asdict(result)))
    assert record["per_class"][10:] == [None, None]
    assert np.array(record["confusion"]).shape == (12, 12)
    assert record["name"] == "logreg"
    assert 1 <= record["chosen_epoch"] <= 3


def test_numpy_arrays_of_the_caller_are_left_alone(digits):
    before = [array.copy() for array in digits]
    train_and_test("logreg", *digits, classes=10, epochs=1)
    assert all(np.array_equal(a, b) for a, b in zip(before, digits, strict=True))


@pytest.mark.parametrize(
    "setting",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"classes": 1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(digits, setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        train_and_test("logreg", *digits, **({"classes": 10} | setting))


def test_mismatched_data_are_refused(digits):
    with pytest.raises(ValueError, match="training images' shape"):
        train_and_test(
            "logreg",
            digits.train_images,
            digits.train_labels,
            digits.test_images[:, :4],
            digits.test_labels,
            classes=10,
        )
    with pytest.raises(ValueError, match="training labels"):
        train_and_test("logreg", *digits, classes=9)
