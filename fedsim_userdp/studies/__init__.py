"""A study: a grid of runs, how sure their comparison is, and what it says in words and tables."""
