"""What decides whether a stage has been done: its code and inputs; names and tags of its runs."""
