"""Which version becomes champion, and its model card, for ``promote``."""
