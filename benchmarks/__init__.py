"""Benchmarks against Celery, procrastinate, a bare asyncio loop and the replaced system: `python -m benchmarks`."""
