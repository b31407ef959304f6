"""Neurons: which of them carry an effect, what they do, and what suppressing them does."""
