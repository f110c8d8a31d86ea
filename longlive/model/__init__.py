"""The network: the Wan tree of sub-modules, the causal forward over it, attention, positions, weights, the VAE."""
