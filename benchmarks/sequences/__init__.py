"""The study of histories: models, ablations and baselines on files of sequences.

    python -m benchmarks.sequences run ml-1m --folder data/ml-1m --seeds 1 2 3 4 5
    python -m benchmarks.sequences try ml-1m --folder data/ml-1m
    python -m benchmarks.sequences report

A study is a YAML file beside this one: a shipped recipe, and variants that each replace some of its
values. `run` tests its variants and its baselines, `try` judges others on validation alone. Every
run is kept in `runs/sequences` as soon as it ends, so a study may be made in pieces; `report` makes
the tables, the pictures and `docs/results/sequences.json` of what is there.
"""
