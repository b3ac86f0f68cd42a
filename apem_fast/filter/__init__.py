"""The explanation filter: the levels of a map, how the score changes over them, where to stop (P2 section 3.2)."""
