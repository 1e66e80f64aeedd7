"""The Ray Data job of the stage ``preprocess``."""
