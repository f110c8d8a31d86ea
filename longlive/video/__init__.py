"""Latents to an mp4 file."""
