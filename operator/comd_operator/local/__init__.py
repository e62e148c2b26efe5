"""The other body of the brain: processes for Jobs, a folder for the bucket, a file for the API server."""
