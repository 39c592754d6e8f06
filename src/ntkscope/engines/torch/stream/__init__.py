"""Data that streams: the kernel of a whole set, batch by batch."""
