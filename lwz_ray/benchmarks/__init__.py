"""Writing benchmarks: their requests, what a judge is asked about a text, and the published scores."""
