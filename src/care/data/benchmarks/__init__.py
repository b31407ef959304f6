"""Readers of published suites; which suite takes which is told in `cards.yaml`."""
