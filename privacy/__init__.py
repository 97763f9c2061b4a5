"""Mechanisms, accounting, sampling, clipping, noise, budget, ledger and audits."""
