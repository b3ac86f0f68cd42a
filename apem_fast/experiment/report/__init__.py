"""The page of a run: tables, statistics, figures."""

from apem_fast.extras import require

require("experiment", "a run's page")
