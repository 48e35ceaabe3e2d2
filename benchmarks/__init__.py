"""Speed and memory of compiled programs beside plain torch: ``python -m benchmarks`` from the folder of the project.

``harness`` measures contestants in turn, ``machine`` measures the machine, ``workloads`` holds what is measured with
plain torch beside it, ``growth`` how time grows with each size. The other files are scripts of their own, for single
tables of the documentation.
"""
