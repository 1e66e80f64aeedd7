"""The Ray Train job of the stage ``train``."""
