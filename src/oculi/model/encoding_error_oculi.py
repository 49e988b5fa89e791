"""What says that an input is at fault, not the code."""


class EncodingError(ValueError):
    """A conversation or a picture that this model cannot be given, as it stands.

    A class of its own, so that who reads many rows can leave such a one out and still see a mistake
    of the code: that has other errors, and is to end the run.
    """
