"""Files that a run leaves for people and programs.

run_folder     config.toml, run.json, metrics.jsonl, samples
report         the run as one page, by report.html.j2
page_tables    its tables
page_pictures  its pictures
figures        numbers of its figures
charts         figures as SVG and PNG
"""
