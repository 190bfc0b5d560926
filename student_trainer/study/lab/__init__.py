"""Laboratory models: small teachers and students, made from seeds, of tasks that are verified."""
