"""Weights: what a file of them says, which are published, and what they were trained as.

    mark          the wiring mark in every state dict, by which weights of other wiring are refused
    errors        what is wrong with a file, in one line
    files         safetensors with the graphs that they were trained on
    description   what a network was trained as and how it is fed: trainer, evaluation and hub read it
    manifest      the published weights, `randwire_zoo/weights.json`: downloads and their checks

The weights that are installed with the package lie here, too.
"""
