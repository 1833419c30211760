"""The memory of API and worker stays flat: a test in CI, and `python -m tests.long.memory` for long runs."""
