"""What was done once with the library and can be done again; no part of the package."""
