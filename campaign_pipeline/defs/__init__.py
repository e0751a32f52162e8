"""Orchestration: the only package, with `definitions` and `launch`, that imports dagster."""

import gc

# What was loaded up to here, Dagster above all, stays until the process ends. Looking through it for garbage again
# while our own modules are loaded took a tenth of that time and more.
gc.freeze()
