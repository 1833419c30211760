"""Tests of what is under `deploy/` for production: the lock, its audit, the permissions."""
