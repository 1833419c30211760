"""What earlier releases have left: their tables are read, and carried on."""
