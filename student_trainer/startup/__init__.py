"""What has to be in order before the first step, as named steps that ``train``, ``doctor`` and
``train --dry-run`` share. ``steps.STEPS`` lists them."""
