"""Asks the model for margins: rays, their probes, and the loop between a search policy and the model."""
