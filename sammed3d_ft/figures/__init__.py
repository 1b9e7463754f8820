"""Figures: training curves, maximum-intensity projections, evaluation plots, and the HTML page that shows them."""
