from torch_threads import one_thread  # noqa: F401  (a fixture of all tests below)
