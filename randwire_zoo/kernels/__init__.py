"""A stage's computation in C++ for the CPU, and the one seam where `network.Stage` may run on it.

    native      the seam: which stages run on the operators, by what their modules are
    operators   operators of torch with their backward pass, made of the library's functions
    stages      a stage of separable nodes as tensors and numbers, and what it computes
    library     the compiled functions, and who chooses them
    build       compiles cpp/ for the processor at hand, and keeps what it built
    cpp/        the code in C++, one idea a file; kernels.cpp includes them all

Nothing here knows a network: a stage is given as what it consists of.
"""
