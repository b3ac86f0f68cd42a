"""`python -m bench`: every benchmark of the metric and its operators, one after the other."""

from __future__ import annotations

from bench import metric, operators, scaling

for benchmark in (operators, metric, scaling):
    benchmark.main()
