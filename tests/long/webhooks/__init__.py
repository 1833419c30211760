"""Promise 10 on real processes: each fact of a subscribed kind arrives, in order, while processes are killed."""
