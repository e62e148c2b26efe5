"""Building the container images. Nothing here is part of comd, and nothing but the standard library is needed."""
