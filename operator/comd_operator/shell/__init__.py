"""The process around the reconciler: kopf's command line, login, life cycle and signals; probes, metrics and logs."""
