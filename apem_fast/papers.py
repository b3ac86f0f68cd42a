"""Numbers of the papers that are defaults here."""

PERCENTILE = 99.0
"""At which attributions are clipped, P1 section IV-A."""
