"""The HTTP API: parses requests, calls the core, and shapes answers. Nothing is decided here."""
