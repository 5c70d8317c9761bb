"""How good clips are: FVD, and the tables of the miniature's measurements."""
