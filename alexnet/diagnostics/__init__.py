"""Measurements of the two towers on given devices, and a check that they compute correctly."""
