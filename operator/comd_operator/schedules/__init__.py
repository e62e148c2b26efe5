"""Schedules: when slots are, and what becomes of each. Pure, as `policies` and `planner` are; what does what is decided here is in
`runtime`."""
