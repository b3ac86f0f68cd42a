"""A whole evaluation: images and networks, the run and its tables, its report, and the filter over its maps."""
