"""One loop, its optimizer, its checkpoints, and the run that strings stages together.

Not called ``train``: importing a package of that name would hide the function ``oculi.train``.
"""
