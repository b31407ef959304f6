"""The small world of the embedded model: goals, pictures, suites and pairs, all made here."""
