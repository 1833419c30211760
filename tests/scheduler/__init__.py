"""One scheduler for all tests that decide which task runs next, and when. It knows only the clock of the broker.

`schedule` runs the tasks, `strategies` choose the next one, and `locks` replace those of `threading`.
"""
