"""The training of 2012: steps, epochs, augmentation, the update rule and checkpoints."""
