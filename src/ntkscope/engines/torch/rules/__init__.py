"""Rules, a file a family of layers: how a parameter's gradient follows from inputs and output gradients.

A family registers its rules when it is imported, which this module does for all of them.
"""

from ntkscope.engines.torch.rules import convolution, embedding, linear, norms
from ntkscope.engines.torch.rules.base import Arguments, Rule, add_rule, find_rule

__all__ = [
    "Arguments",
    "Rule",
    "add_rule",
    "convolution",
    "embedding",
    "find_rule",
    "linear",
    "norms",
]
