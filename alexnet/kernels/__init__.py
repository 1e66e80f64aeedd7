"""Loops compiled for CPUs."""
