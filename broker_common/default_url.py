"""Where the API listens unless somebody says otherwise."""

DEFAULT_URL = "http://127.0.0.1:8080/v1"
"""With the base path, as `make run` starts it."""
