"""`python -m bench`: every benchmark, one after the other."""

from __future__ import annotations

from bench import filter, metric, operators, scaling, siamese, study

for benchmark in (operators, metric, scaling, filter, siamese, study):
    benchmark.main()
