"""Publishing on the Hugging Face Hub: weights that anybody can check.

    staging     a training's checkpoint becomes a folder with all that a repository needs
    card        the model card, rendered from what was recorded
    checks      what must be true of such a folder before and after it is sent
    publishing  one commit, one tag, and the proof that what was sent is what is served
    cli         randwire-zoo hub stage, push, verify, pull, manifest

It depends on the zoo, and nothing of the zoo depends on it: reading published weights is `weights.manifest`'s job.
"""
