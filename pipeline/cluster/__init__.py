"""Ray: the thin shells in which the budget, the training, the sampling and the metrics run."""
