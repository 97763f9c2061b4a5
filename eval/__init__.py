"""What a synthetic data set is worth: classifiers, Fréchet distance, precision and recall."""
