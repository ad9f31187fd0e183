"""Simulation of fine-tuning language models under user-level differential privacy."""

__version__ = "0.1.0"
