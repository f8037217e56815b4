"""The recipe behind the `starter` checkpoint: draw scenes, train, evaluate, export.

No service imports this package; it is kept so that anybody can repeat or continue the training.
"""
