"""Published suites, one module for each kind."""
