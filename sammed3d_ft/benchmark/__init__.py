"""Benchmark: methods x folds x seeds in one table, each run separate and resumable.

Every method makes masks of every test case, and one evaluator scores them all. Every patient is tested once per seed,
by a model never trained on that patient: fold k is the test set, fold k + 1 is for validation, and the others for
training. Values are averaged over seeds for each patient before anything is compared.
"""
