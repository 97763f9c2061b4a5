"""The benchmark: ratios against peers, measured on this machine."""
