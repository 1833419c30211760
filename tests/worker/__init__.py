"""Tests of the worker, beat and the job queue, against a real Redis-compatible server and real processes."""
