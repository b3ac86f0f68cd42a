"""What all results share: comparison, one-line text, tables and plots; and relevance maps laid over their images."""

from apem_fast.results.result import Result, TableResult, censored, counted, short

__all__ = ["Result", "TableResult", "censored", "counted", "short"]
