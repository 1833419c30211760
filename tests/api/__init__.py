"""The HTTP API, through Flask's test client, over the store in memory."""
