"""One file a technology: each implements a port of the core and translates that technology's errors."""
