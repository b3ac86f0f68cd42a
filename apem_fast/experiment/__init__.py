"""A whole evaluation: networks and images, a run and its tables, its report, and the filter over its maps."""
