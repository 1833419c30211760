"""The HTTP API: it parses requests, calls the core, and shapes answers. The core decides."""
