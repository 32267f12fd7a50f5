"""What `profilemate doctor` looks at beside the hooks: the start of Python, the output folder, the CUDA driver.

Never loaded inside vLLM.
"""
