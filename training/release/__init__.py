"""A bundle in a registry and on Triton."""
