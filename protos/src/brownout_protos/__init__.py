"""What crosses a wire in Brownout. Generated modules live in ``v1``; ``generate.py`` writes them."""
