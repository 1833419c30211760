"""Pictures as SVG, drawn on the server. Each is made of the numbers that its page also shows as a table."""
