"""Weights of other networks and other programs, as those of a network of this project."""
