"""A local page that writes text with a model and shows its wave."""
