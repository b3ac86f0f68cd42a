"""The model is asked for margins: rays, probes of them, and the loop between a search policy and a model."""
