"""Benchmarks: each prints what it measured, as ratios within one run; `make bench` runs them."""
