"""The search for the best sampler of a network: its space, its trials, its answer."""
