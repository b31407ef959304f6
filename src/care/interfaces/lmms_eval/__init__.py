"""care in lmms-eval: a model for `lmms-eval --model care`. Needs the extra `lmms-eval`."""
