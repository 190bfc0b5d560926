"""The generated pages of docs/reference: settings and metrics of both programs."""
