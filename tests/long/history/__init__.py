"""A history checker: random clients, real jobs and faults run; then all that was seen is checked against the promises.

`python -m tests.long.history --help` says how to run it against real processes.
"""
