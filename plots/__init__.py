"""Figures: numbers in, files out. `style` is what they share; every other module draws one figure."""
