"""What people run: the command line, the demo, the paper's experiments. On the public API alone."""
