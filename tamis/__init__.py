"""Selects the examples and the parameters that fine-tuning needs."""

__version__ = "0.1.0"
