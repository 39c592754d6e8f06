"""Rules, a file a family of layers: how a parameter's gradient follows from inputs and output gradients.

A family registers its rules when it is imported, which this module does for all of them.
"""

from ntkscope.engines.torch.rules import convolution, elementwise, embedding, linear, moves, norms, products
from ntkscope.engines.torch.rules.base import Arguments, GroupShape, Rule, add_rule, find_rule

__all__ = [
    "Arguments",
    "GroupShape",
    "Rule",
    "add_rule",
    "convolution",
    "elementwise",
    "embedding",
    "find_rule",
    "linear",
    "moves",
    "norms",
    "products",
]
