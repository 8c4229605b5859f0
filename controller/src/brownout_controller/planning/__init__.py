"""From an experiment and a view of the fleet to a plan: pure, repeatable from its seed, and refused with reasons."""
