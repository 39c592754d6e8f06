"""Rules, a file a family of layers: how a parameter's gradient follows from inputs and output gradients."""
