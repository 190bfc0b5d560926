"""What makes the documentation: generated pages and the site. Not part of the product."""
