"""What a run leaves for people and programs.

run_folder  config.toml, run.json, metrics.jsonl, samples
"""
