"""A server that speaks OpenAI's API, under one repair: what `care serve` runs."""
