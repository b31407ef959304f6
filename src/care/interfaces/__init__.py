"""Everything that drives the library from outside; nothing in the package imports it."""
