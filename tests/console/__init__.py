"""The console in this process, over a whole API in this process."""
