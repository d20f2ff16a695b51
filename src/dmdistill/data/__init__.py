"""Conditions, images and noise-image pairs, in memory and on disk."""
