"""Monitors: what is asked and answered is read again as text, which no picture can touch."""
