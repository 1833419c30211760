"""The broker's rules. Standard library only: no framework, no client, no environment."""
