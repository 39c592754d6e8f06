"""``python -m ntkscope``: the same as the ``ntkscope`` command."""

from ntkscope.apps.cli import main

if __name__ == "__main__":
    main()
