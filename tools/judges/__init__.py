"""How good the offline judge is: agreement with labels by hand, calibration of perplexity."""
