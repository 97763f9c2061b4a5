"""Exports of a synthetic data set, in any of `formats`, with a card and a privacy statement."""
