"""The campaign of hostile inputs: `make hostile`, or `python -m tests.hostile --help`.

It is no part of the suite; tests/test_hostile.py checks that the campaign itself works.
"""
