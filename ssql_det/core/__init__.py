"""What every other package uses. Import the file you need.

================ ================================================================
errors           user errors: one sentence and exit code 2
streams          stdout and stderr that never stop a command
files            atomic writes, temporary folders, reading of regular files, file hashes
json_files       JSON that may have been edited or torn
run_folder       a run owns its folder; what may be resumed there
unpickler        safe reading of ``.pth`` and ``.pkl`` files: no code in them runs, and their cost is limited
reading_budget   what reading one file may cost
pickle_machine   the opcodes of a pickle
pickle_names     what the names in a pickle stand for
container_rebuild, tensor_rebuild, inert
                 what a pickle may call: plain containers, arrays and tensors, stand-ins for other classes
tensor_files     reproducible ``torch.save``; safetensors files
gradients        the check of losses and gradients in each training step
optimizer_state  loading and checking an optimizer's state
rows             result rows in ``results.jsonl``
rng              seeded generators, and saving and restoring their state
devices          the device that a config names, and what is fast on it
config           YAML configs: ``_BASE_``, ``KEY VALUE`` overrides, resuming
config_files     the configs that come with the package, found by name
registry         classes and functions by name; plugins
processes        child processes, which end with their parent
launch           ``torchrun`` and ``--num-gpus``: the ranks of a command
heartbeat        ranks notice another one that is frozen or unreachable
distributed      collectives over the ranks
console          log lines, progress bars, tables
scalar_writer    training curves as JSON lines and TensorBoard events
================ ================================================================

Nothing is imported here, so that importing ``errors`` does not import torch.
"""
