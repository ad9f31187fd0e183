"""Mathematics of the guarantee: what is released, what it costs, and the record of it."""
