"""Empirical lower bounds on epsilon: canary users in one training run, and user inference on real users."""
