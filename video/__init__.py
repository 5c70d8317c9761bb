"""Reading videos, for the nodes and for training; knows no host and nothing else of ours."""
