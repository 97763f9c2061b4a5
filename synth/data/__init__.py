"""Parquet shards of images and their manifest."""
