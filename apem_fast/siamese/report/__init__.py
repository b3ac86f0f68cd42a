"""Explanations of a ranker as sections of a page."""
