"""Random models of the operations and habits of real code, against plain autograd on each of them."""
