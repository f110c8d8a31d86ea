"""LongLive Algorithm 2: blocks denoised over a KV cache, prompt switches, and a cache rebuilt from a session."""
