"""One scheduler for all checks that decide themselves who runs next, and when. Of the broker it knows the clock.

`schedule` runs the tasks, `strategies` choose among them, `locks` stand in place of those of `threading`.
"""
