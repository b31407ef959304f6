"""Bridges to other projects. Each needs an extra, and nothing in the package imports them.

`inspect_*`: Inspect (inspect-ai); see docs/inspect.md.
"""
