"""How large a request may be, and how many seconds each step of it may take."""

MAX_BODY_BYTES = 64 * 1024
HEAD_SEC = 10
"""For the head of a request to come, from its first byte on; a new connection must begin within it."""
BODY_SEC = 10
ANSWER_SEC = 20
"""For an answer to be taken by its client; most fit into the socket's buffer and are gone at once."""
BULK_DEADLINE_SEC = 30.0
"""For calls that go through many records, which an operator makes and waits for."""
