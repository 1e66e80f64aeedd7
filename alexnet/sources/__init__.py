"""Raw images in any of five layouts → one index of keys, labels and byte ranges."""
