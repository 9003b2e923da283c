"""Reproduce the published tables: plan the commands, run them as parallel jobs with a cache, and write a report.

experiments   how each method's backbone is pretrained, and the detectors and probes that measure the tables
presets       the presets mini, small and paper; the options of a user
steps         a step of a plan: one command with its inputs and outputs
plan_builder  the steps that make a table's rows
plan          a preset and options as an ordered plan; checks before it runs; the results of a run
step_cache    which steps are done, and from which inputs
runner        run the steps as parallel jobs; a failure stops only the steps that depend on it
report_page   the report and the tables of a run, as files
run_details   sections of the report: coverage, pretraining, minutes, environment, commands
"""
