"""From nothing to the published tables: a plan of single commands, run as parallel jobs, cached, and reported on.

experiments   how each method's backbone is pretrained, and the detectors and probes that fill the tables
presets       mini, small and paper: what is reproduced at which size; the options of a user
steps         a step of a plan: one command with its inputs and outputs
plan_builder  the steps behind a table's rows
plan          a preset and options as an ordered plan; checks before it runs; the results of a run
step_cache    which steps are done, and from which inputs
runner        run the steps as parallel jobs; one that fails stops only what depends on it
report_page   the report and the tables of a run, as files
run_details   sections of the report: coverage, pretraining, minutes, environment, commands
"""
