"""Every way to a number: what it gives, when it applies, what it costs, how it runs."""
