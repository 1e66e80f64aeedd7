"""Raw images in any of four layouts → one index of keys, labels and byte ranges."""
