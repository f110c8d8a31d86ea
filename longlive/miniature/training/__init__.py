"""How the miniature is made: films, the VAE on their pixels, the network on their latents."""
