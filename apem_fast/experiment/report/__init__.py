"""A run is shown: tables, statistics, figures and the page."""

from apem_fast.extras import require

require("experiment", "a run's page")
