"""Limits of a request: its size, and the seconds that each of its steps may take."""

MAX_BODY_BYTES = 64 * 1024
HEAD_SEC = 10
"""For the head of a request to arrive, from its first byte. A new connection must send that byte in the same time."""
BODY_SEC = 10
ANSWER_SEC = 20
"""For a client to take an answer. Most answers fit into the socket's buffer, and are gone at once."""
BULK_DEADLINE_SEC = 30.0
"""For calls that go through many records. An operator makes them and waits."""
CONSOLE_THREADS = 16
CONSOLE_CALL_SEC = BULK_DEADLINE_SEC + 5
"""For the API to answer the console. A person waits for it."""
CONSOLE_ANSWER_SEC = 40
"""The longest that the console works on a page. docs/deployment.md names it, for proxies."""
