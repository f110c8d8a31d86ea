"""The networks: the Wan tree, the causal forward over it, attention, rotary positions, the VAE, the text encoder."""
