"""Benchmarks (`make bench`): each prints its figures, as ratios within one run."""
