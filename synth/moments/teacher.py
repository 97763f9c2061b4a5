"""A linear softmax classifier on scattering features, taught by noisy gradients of private records.

Its space is made from synthetic images alone: projection on their principal components, whitened.
It begins at the fit on synthetic images; then every step is a Gaussian mechanism over all records
(`privacy.moments.softmax_gradient`).

Shapes: n images, F features, p components, k classes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from synth.scattering import Scattering

COMPONENTS = 200
MAX_NORM = 1.5  # of a whitened feature vector; 1 is the root mean square on synthetic images
_CONSTANT = 0.5  # an additional feature, for the biases
_PENALTY = 1e-4
_FIT_STEPS = 60
KAPPA = 2.0  # how far a label that an image was drawn for is believed, in logits


@dataclass(frozen=True)
class FeatureSpace:
    """Whitened features of images, of norm at most 1.5; a function of synthetic images."""

    scattering: Scattering
    mean: Tensor
    projection: Tensor

    @classmethod
    def of(cls, scattering: Scattering, synthetic: Tensor) -> "FeatureSpace":
        """Find the space of synthetic images [n, c, S, S] in [-1, 1]."""
        features = scattering(synthetic)
        mean = features.mean(0)
        p = min(COMPONENTS, *features.shape)
        # A fixed seed: which random directions the search begins in is of no matter.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, values, vectors = torch.svd_lowrank(features - mean, q=min(p + 20, *features.shape))
        scales = values[:p] / math.sqrt(len(features))
        # So that the mean square of a whitened vector's norm is 1.
        whitening = vectors[:, :p] / (scales.clamp_min(1e-6 * float(scales[0])) * math.sqrt(p))
        return cls(scattering, mean, whitening)

    @property
    def dimension(self) -> int:
        """p + 1: the whitened components and a constant."""
        return self.projection.shape[1] + 1

    def __call__(self, images: Tensor) -> Tensor:
        """Return features [n, p + 1], float32, of images [n, c, S, S] in [-1, 1]."""
        features = self.scattering(images)
        white = (features - self.mean.to(features)) @ self.projection.to(features)
        norms = torch.linalg.vector_norm(white, dim=1, keepdim=True)
        white = white * (MAX_NORM / norms.clamp_min(MAX_NORM))
        return functional.pad(white, (0, 1), value=_CONSTANT)


def fit(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the weights [k, p + 1] of penalised logistic regression on synthetic images."""
    weights = torch.zeros(classes, features.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=_FIT_STEPS, line_search_fn="strong_wolfe", history_size=10
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(features @ weights.T, labels)
        value = value + _PENALTY * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach().double()


class Descent:
    """Gradient descent with momentum, whose last half is averaged.

    The learning rate is as large as keeps the noise of a step small.
    """

    momentum, largest_rate, noise_of_a_step = 0.9, 50.0, 0.015

    def __init__(self, weights: Tensor, steps: int, gradient_noise: float) -> None:
        """Begin at `weights` [k, p + 1]; `gradient_noise` is that of a mean gradient's entry."""
        self.weights, self._steps, self._step = weights.clone(), steps, 0
        self._rate = min(self.largest_rate, self.noise_of_a_step / gradient_noise)
        self._velocity, self._sum, self._count = torch.zeros_like(weights), weights * 0, 0

    def take(self, gradient: Tensor) -> None:
        """Take one step along a mean gradient [k, p + 1]."""
        self._velocity = self.momentum * self._velocity + gradient
        self.weights = self.weights - self._rate * self._velocity
        self._step += 1
        if 2 * self._step > self._steps:
            self._sum, self._count = self._sum + self.weights, self._count + 1

    @property
    def result(self) -> Tensor:
        """The mean of the weights of the last half of the steps, if there were any."""
        return self._sum / self._count if self._count else self.weights

    @property
    def steps_taken(self) -> int:
        """How many steps were taken, those before `restore` included."""
        return self._step

    def state(self) -> Tensor:
        """Return all that the next step needs, one tensor; made of noised gradients only."""
        counts = torch.zeros_like(self.weights)
        counts.view(-1)[:2] = torch.tensor([self._step, self._count], dtype=counts.dtype)
        return torch.stack([self.weights, self._velocity, self._sum, counts])

    def restore(self, state: Tensor) -> None:
        """Go on from what `state` returned."""
        self.weights, self._velocity, self._sum, counts = state.unbind()
        self._step, self._count = (int(count) for count in counts.view(-1)[:2])


@dataclass(frozen=True)
class Labels:
    """The teacher's labels of synthetic images, and how they follow from its logits.

    argmax(logits + offsets + kappa onehot(the label that an image was drawn for)), where the
    offsets make all classes equally many: a teacher leans to some of them.
    """

    labels: Tensor  # int64 [n]
    offsets: Tensor  # [k]
    agreement: Tensor  # [k, k]: P[label | drawn for], by rows

    @classmethod
    def of(cls, logits: Tensor, drawn_for: Tensor) -> "Labels":
        """Label images with logits [n, k], drawn for labels [n]."""
        k = logits.shape[1]
        scores = logits + KAPPA * functional.one_hot(drawn_for, k)
        offsets = balanced(scores)
        labels = (scores + offsets).argmax(1)
        counts = (drawn_for * k + labels).bincount(minlength=k * k).reshape(k, k).double()
        return cls(labels, offsets, counts / counts.sum(1, keepdim=True).clamp_min(1))


def balanced(logits: Tensor, rounds: int = 50) -> Tensor:
    """Return offsets [k] that make the classes of argmax(logits [n, k] + offsets) equally many."""
    n, k = logits.shape
    offsets = torch.zeros(k, dtype=logits.dtype)
    rate = float(logits.std()) if n > 1 else 1.0
    for done in range(rounds):
        shares = (logits + offsets).argmax(1).bincount(minlength=k) / n
        offsets -= rate * (shares * k - 1).clamp(-1, 1) * 0.3 * (1 - done / rounds)
    return offsets - offsets.mean()
