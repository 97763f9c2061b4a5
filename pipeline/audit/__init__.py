"""`umbra audit`: the ledger, the mechanism that is shipped, a run's training, and its release."""
