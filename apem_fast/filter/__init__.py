"""The explanation filter: the levels of a map, how scores change along them, and what may be taken away (P2 section
3.2)."""
