"""A page in the browser that asks a model bare and repaired at once: what `care chat` runs."""
