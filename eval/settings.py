"""Names and defaults of the evaluation, readable without torch.

A spec is checked against them before anything heavy is imported.
"""

from typing import Literal, get_args

#: Classifiers of `eval.utility`, in the order in which they are reported.
ClassifierName = Literal["logreg", "mlp", "cnn"]
CLASSIFIER_NAMES: tuple[ClassifierName, ...] = get_args(ClassifierName)
#: Feature extractors of `eval.features`; "inception" needs a local TorchScript file.
EXTRACTOR_NAMES = ("gabor", "inception")

# Downstream classifiers, by the protocol of DPDM (Dockhorn et al. 2023).
#: Passes over the training part of the synthetic images.
EPOCHS = 50
#: Of Adam, without decay.
LEARNING_RATE = 3e-4
#: Images a step.
BATCH_SIZE = 128
#: Share of the synthetic images that chooses the epoch.
VALIDATION_FRACTION = 0.1
#: The fewest images to train on: with fewer, none would be left to choose the epoch.
FEWEST_TRAINING = 10

# Precision, recall, density and coverage.
#: k of the k-th neighbour.
NEAREST = 5
#: The most images of either set to compare.
MAX_IMAGES = 5000


def fewest_compared(nearest: int) -> int:
    """Return how many images each set needs at least for the `nearest`-th neighbour."""
    # The library partitions at position k + 1, the image itself being at position 0.
    return nearest + 2
