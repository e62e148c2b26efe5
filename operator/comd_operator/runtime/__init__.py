"""The operator's side of the API server: client, watches, stores, work queue, Lease, and the reconciler that they drive."""
