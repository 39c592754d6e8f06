"""Per-sample parameter gradients in factored form."""
