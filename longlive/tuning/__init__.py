"""Streaming long tuning: train a model on its own long videos (LongLive §3.2, Alg. 1)."""
