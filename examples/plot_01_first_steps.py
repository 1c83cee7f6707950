"""
First steps
===========

Hello.
"""
import deepfeat
print(deepfeat.__version__)
