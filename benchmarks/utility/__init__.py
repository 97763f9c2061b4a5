"""The utility of synthetic data by the protocol of DPDM; see `__main__`."""
