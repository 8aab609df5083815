"""The study itself: examples, phrases and boxes; benchmarks, models, metrics and fine-tuning.

Everything needed to ask whether a vision-and-language model that solves a task also grounds the
phrases it reads. It imports nothing of the other packages.
"""
