"""Floor 3: from nothing to the tables. A plan of single commands, run side by side, resumed, and reported on.

step          one command: what it reads, what it makes
presets       what is reproduced at which size: mini, small, paper
building      the steps of one detector
plan          a preset and a user's choices as steps in their order
ledger        what is done already, and from which inputs
runner        steps in lanes, with progress; one that fails does not end the others
checks        what would end a plan after hours, asked before it begins
reproduction  a plan with what became of it
page          the report on it
evidence      what stands behind its numbers
features      what few bits did to the features that detectors began with
output        tables and report as files
"""
