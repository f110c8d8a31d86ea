"""Recorded runs of the reference, and how they are verified."""
