"""What every training shares: the resumable loop, processes, reading ahead, memory."""
