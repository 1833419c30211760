"""What must hold after any sequence of operations: drawn at random against a model, and searched exhaustively."""
