"""Distances and scores of sets of images, and the networks in whose features they are measured."""
