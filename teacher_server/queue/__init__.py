"""Who is scored next: admission by tokens, fair shares between runs, quotas."""
