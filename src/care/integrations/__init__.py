"""Bridges to other projects. Each needs an extra, and nothing in the package imports them.

`inspect_*`: Inspect (docs/inspect.md). `lmms_*`: lmms-eval (docs/lmms-eval.md).
"""
