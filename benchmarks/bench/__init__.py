"""Every kernel against named alternatives, in the same run.

python -m benchmarks.bench [--steps NAME ...] [--quick]
"""
