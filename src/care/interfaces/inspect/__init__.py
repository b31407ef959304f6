"""care in Inspect: models, suites as tasks, judges as scorers, logs. Needs the extra `inspect`."""
