"""The memory of API and worker stays flat: a test in CI, and `python -m tests.memory` for long runs."""
