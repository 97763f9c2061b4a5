"""Noisy moments: a mixture of Gaussians a class, and what makes a generator of it for free."""
