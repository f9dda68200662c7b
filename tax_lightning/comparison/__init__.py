"""Models compared on equal terms: runs, their results, paired tests, tables and a figure.

``tax compare`` (:mod:`tax_lightning.comparison.command`) trains and tests every model with every
seed and fold, each in a process of its own (:mod:`tax_lightning.comparison.runs`), keeps what came
out in two CSV files (:mod:`tax_lightning.comparison.results`), and reports it
(:mod:`tax_lightning.comparison.report`).
"""
