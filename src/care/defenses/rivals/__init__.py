"""Rivals: published defenses, each written from its paper's formulas, one file each.

They know neither each other nor the repair; `care.defenses.known` lists them. Where a paper's data
isn't here, a rival is fitted on the nearest that is: requests and the model's own answers. Each
header says so, and what the paper leaves open.
"""
