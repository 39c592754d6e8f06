"""From gradients of the state to gradients of every use of a parameter."""
