"""For those who maintain the library; no part of the package."""
