"""Measures any video and reports tables and plots."""
