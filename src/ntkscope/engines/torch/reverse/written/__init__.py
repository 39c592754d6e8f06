"""The reverse pass of a graph written out once. Nothing outside but ``samples.jacobian`` knows it."""
