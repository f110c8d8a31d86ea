"""Trains the miniature: the VAE on pixels of clips, the network and its teacher on their latents."""
