"""The distribution API over httpx: auth, redirects, ranges, retries."""
