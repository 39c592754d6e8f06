"""The experiments of arXiv 2511.10796, run again beside this library's methods: ``ntkscope paper``."""
