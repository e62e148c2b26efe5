"""A real Kubernetes cluster on one machine, in namespaces of its own: no registry, no Docker, no way out.

Where things are is in `layout`, what runs and how it is called in `components`, who starts it in `machine`; `lifecycle`
brings a cluster up and takes it down, `cluster` is what tests hold in their hands, `fixtures` gives it to them.
`python -m tests.cluster` does the same by hand.
"""
