"""Samples that are spread over processes of torch.distributed."""
