"""The network: two towers, their normalization and placement, and its one-column form."""
