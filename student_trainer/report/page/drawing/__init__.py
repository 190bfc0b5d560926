"""What charts are drawn with: axes and curves as numbers, and heat maps."""
