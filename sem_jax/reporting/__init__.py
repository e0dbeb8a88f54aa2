"""The page of a run: figures drawn from metrics.jsonl as one HTML file that needs nothing else."""
