"""Network, denoisers, private training, samplers, shards and exports."""
