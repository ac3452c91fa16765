"""Operators and losses beside their rivals: what is raced, and by which rules.

``harness``      what a workload is, and how its contestants are timed
``peak_memory``  the memory of one of them, in a process of its own
``rates``        what the machine reaches by a copy and by matrix products
``roofline``     a picture of what contestants reach beside that
``environment``  what a number depends on
``ops/``         the workloads, one file for each operator
"""
