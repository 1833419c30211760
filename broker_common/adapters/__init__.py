"""A file a technology, or a few that share its name: each implements a port of the core, and translates its errors."""
