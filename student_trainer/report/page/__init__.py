"""The report's page: which charts it has, and how they are drawn as SVG."""
