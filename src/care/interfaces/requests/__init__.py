"""Requests from outside: batching, chat messages as examples, settings of decoding."""
