"""A run is shown: tables, statistics, figures and the page."""
