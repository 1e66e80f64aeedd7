"""One step, one epoch and one checkpoint of the training of 2012."""
