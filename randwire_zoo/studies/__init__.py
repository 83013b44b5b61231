"""Studies: populations of RandWire networks, trained under one recipe and compared (paper section 4).

    study       what a study is: one yaml file, checked, and the networks it asks for
    work        one network from its graph to its row of results, in a process of its own
    measures    of a network's graphs, nodes and edges
    proxies     predictions of its accuracy from its first weights
    damage      nodes and edges removed from a trained network (Figure 5)
    engines     what runs the processes: a pool on this machine, or a cluster
    running     a study from its first network to its last, interrupted or not
    results     the file of rows
    cost        what a study will take, from measured steps
    search      over a generator's own parameters
    analysis    what rows say together
    report      tables, pictures, and one html page of both
    baselines   the small hand-made networks that a study on MNIST compared with
"""
