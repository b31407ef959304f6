"""The commands: each module has some, marked with `@command`, and stands in no list.

Nothing is computed here, and torch is imported only when a command runs.
"""
