"""Studies: populations of RandWire networks, trained under one recipe and compared (paper section 4).

    study       what a study is: one yaml file, checked, and the networks it asks for
    work        one network from its graph to its row of results, in a process of its own
    damage      nodes and edges removed from a trained network (Figure 5)
    engines     what runs the processes: a pool on this machine, or a cluster
    running     a study from its first network to its last, interrupted or not
    results     the file of rows
    report      tables, pictures, and one html page of both
    baselines   the small hand-made networks that a study on MNIST compared with
"""
