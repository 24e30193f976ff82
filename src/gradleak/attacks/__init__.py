"""What the receiver of an update can do to recover the batch. One method, one file; the module's name is its name
on the command line. An attack must not know the private batch, any score, another attack or a concrete defense.
"""
