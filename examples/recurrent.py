"""The kernel of a recurrent network over time: n = 48,000 hidden units of a GRU.

Run it with: python examples/recurrent.py
"""

import torch

from ntkscope import NTK

torch.manual_seed(0)
inputs = torch.randn(50, 15, 10)  # 50 steps, 15 samples
model = torch.nn.GRU(10, 64)

kernel = NTK(model, inputs, outputs=lambda y: y[0], batch_dim=1)
print(kernel)
kernel.explain("trace")
print("\nto 1%:", repr(kernel.trace(rtol=0.01)))
