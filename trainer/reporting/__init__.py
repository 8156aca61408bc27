"""What a run leaves for people and programs.

run_folder  config.toml, run.json, metrics.jsonl, samples
report      the run as one page
page        its HTML
figures     numbers of its figures
charts      figures as SVG and PNG
"""
