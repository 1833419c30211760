"""`broker`: the operator's command line. It asks the HTTP API, and reaches the table only where no API can."""
