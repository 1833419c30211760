"""A history checker: random clients, real jobs and faults; then all that was seen is held against the promises.

`python -m tests.long.history --help` says how to run it against real processes.
"""
