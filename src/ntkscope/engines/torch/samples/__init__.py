"""The Jacobian of every sample on its own."""
