"""Our numbers beside those that the Adv-DPNP paper printed, and the pages of the defenses."""
