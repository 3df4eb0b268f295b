"""What measures Outlast: `outlast bench` and `outlast study`. In checkouts and the sdist, in no wheel and no image."""
