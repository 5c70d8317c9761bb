"""The command line: a file of thin commands for each group, over plain functions."""
