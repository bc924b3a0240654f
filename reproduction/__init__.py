"""Reproducing the paper's tables: planning and training runs, statistics, the report."""
