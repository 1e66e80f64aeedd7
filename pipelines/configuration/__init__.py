"""The settings of single commands, and the types of setting values."""
