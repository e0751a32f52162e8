"""Several hosts on one queue: network namespaces without a shared folder, Celery, Redis, and outputs in a bucket."""
