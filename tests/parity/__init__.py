"""sem_jax against the independent PyTorch reference: values, gradients, training; see `torch_reference`."""
