"""A small CNN in Flower."""
