"""What tests share: tiny models, planted effects, made-up judges, copies of suites."""
