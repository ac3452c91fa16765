"""Measures of frozen features: images with labels, features of them, probes, and ranks."""
