"""`python -m bench`: every benchmark, one after the other."""

from __future__ import annotations

from bench import filter, host, metric, operators, scaling, siamese, study

for benchmark in (operators, metric, host, scaling, filter, siamese, study):
    benchmark.main()
