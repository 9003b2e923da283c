"""Floor 0: what every other floor stands on. One noun a file; import the file you need.

=========== ==================================================================
errors      a user's mistake: one sentence, exit code 2
files       atomic writes, file hashes
reader      the only way a checkpoint file is read; nothing in it is executed
rebuild     arrays and tensors from what a pickle says about them, checked
tensor_files tensors in files, the same bytes for the same content; safetensors
rows        result rows: append-only, two writers, no torn line
choices     random choices that follow from the seed and a sample's place, and generators' state
devices     a GPU, or what is there
config      YAML with ``_BASE_``, ``KEY VALUE`` overrides, typos answered
ranks       one process or many: ``torchrun`` and ``--num-gpus`` meet here
console     log lines, progress bars, tables
writers     training curves as JSON lines and TensorBoard
=========== ==================================================================

Nothing is imported here, so that ``errors`` costs no torch.
"""
