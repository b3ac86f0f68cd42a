"""What happens to results when things go wrong: `python -m reliability`, or `make test-reliability`.

Each part breaks something many times, by a seed, within its own share of the time, and counts what came of it. The
figures of the last run are in docs/reliability.md, which the command writes. `python_tests/test_reliability_parts.py`
runs every part briefly.
"""
