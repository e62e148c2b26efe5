"""The contract: everything the operator and the trainer both have to know.

Pydantic types of the custom resources, of a stage's config and result, of artifacts and exit codes,
and the rules (CEL) that the API server and `comd validate` both evaluate. Imports pydantic and nothing
else of ours, so that either side can be replaced without the other.
"""

GROUP = "comd.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
