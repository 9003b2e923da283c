"""Floor 3: from nothing to the tables. A plan of single commands, run side by side, resumed, and reported on.

parts     a detector's rows of a table, or a probe's: what they are made of; how methods are pretrained
presets   what is reproduced at which size: mini, small, paper; what a user may say of it
building  the steps behind a table's rows
plan      a preset and a user's choices as steps in their order; what would end them after hours; what became of them
ledger    what is done already, and from which inputs
runner    steps in lanes, with progress; one that fails does not end the others
page      the report on it and its tables, as files; what it costs at few bits comes first
evidence  what stands behind its numbers
"""
