"""From raw images to Parquet shards of 256x256 images, and from shards to batches."""
