"""What can be read off the activations, layer by layer, with controls; and the ``probe`` command.

Probes are small models trained on frozen activations. They read a run through ``extract.reader`` and
never see the live model; interventions do, and leave it as it was.
"""
