"""What knows a framework's automatic differentiation, behind the protocols of ``base``."""
