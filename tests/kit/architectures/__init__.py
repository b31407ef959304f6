"""Tiny random models of every image-text-to-text family of transformers, with their processors."""
