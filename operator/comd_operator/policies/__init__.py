"""Decisions, one question a file. Pure: they get the spec, the ledger (`status`) and the time, and never look at
anything else."""
