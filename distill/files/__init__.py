"""What is kept on disk: caches, digests, claims of folders, and written clips."""
