"""What all results share: how they compare, what they say of themselves, how they are drawn; maps over their images."""

from apem_fast.results.result import Result, TableResult, censored, counted, short

__all__ = ["Result", "TableResult", "censored", "counted", "short"]
