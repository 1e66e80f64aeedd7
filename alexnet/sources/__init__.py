"""Where raw images lie, in any of the forms that people have them in, as one index."""
