"""What a connection and the application tell each other in a request's scope."""

from __future__ import annotations

# The names in the connection's client certificate, for the application.
NAMES_KEY = "lsm.certificate_names"
# Who makes the call, once it is let in.
CALLER_KEY = "lsm.caller"
