"""Where a model hurts: statistics of every component on a real batch, forward and backward, and ranked suspects."""
