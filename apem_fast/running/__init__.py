"""How a user's model is run: left as it was, alone or in the best batches, captured or compiled, in float32 or
below."""
