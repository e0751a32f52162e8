"""Several hosts on one queue: network namespaces with no folder in common, Celery, Redis, and outputs in a bucket."""
