"""Streaming long tuning: learning from one's own long rollouts (LongLive §3.2, Alg. 1)."""
