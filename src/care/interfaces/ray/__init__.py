"""Shards of a job on the workers of a Ray cluster, or of this machine."""
