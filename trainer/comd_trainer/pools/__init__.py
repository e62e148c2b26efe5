"""Which items a round compares, makes and learns from: pure functions on rows (method sections 4c, 6 and 12)."""
