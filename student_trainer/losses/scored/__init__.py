"""From a reply of the service to the arrays that a loss takes."""
