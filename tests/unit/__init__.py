"""The core's rules, over test doubles and with a fixed clock: no sockets, no waiting."""
