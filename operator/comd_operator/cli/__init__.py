"""`comd`: run, plan, validate."""
