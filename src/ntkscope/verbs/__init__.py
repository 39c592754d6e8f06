"""What an NTK can be asked for besides the metrics, a subject a file; :class:`ntkscope.NTK` has them all."""
