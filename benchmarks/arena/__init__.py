"""The arena: a SEM beside what a user would pick instead, in one trainer under one budget; see `__main__`."""
