"""Runs the user's model without changing it: alone or in batches, captured or compiled, in float32 or lower."""
