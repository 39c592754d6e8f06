"""Whether every number is that of the user's own model: tests by situation, against plain autograd."""
