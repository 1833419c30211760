"""One file for each technology, or several with its name: each implements a port of the core and translates errors."""
