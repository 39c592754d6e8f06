"""The autodiff half: J = ∂state/∂parameters as a linear map of blocks, and its structure.

Nothing here knows what the products are for; the estimators know nothing of autodiff.
"""

from __future__ import annotations

from ntkscope.engines.torch.jacobian import Jacobian
from ntkscope.engines.torch.state import StateFunction

__all__ = ["Jacobian", "StateFunction"]
