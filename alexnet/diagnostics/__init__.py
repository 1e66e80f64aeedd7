"""What devices are worth to the two towers, and whether they compute the same."""
