"""Microbenchmarks: ratios within one run, printed as tables and written as JSON to bench/results/."""
