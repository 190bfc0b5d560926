"""The comparison study: arms that differ in named settings, at equal steps, over several seeds."""
